"""How long the cells that are missing will take, from those that are done. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .cells import REPORT, budget_of, grid_cells, next_cells
from .plan import Plan


def seconds_of_work(plan: Plan, pairs: Sequence[tuple[str, str]], results: Mapping[str, Any]) -> float | None:
    """Seconds of one worker for what is missing; `None` before the first cell has ended.

    A cell is reckoned by its budget of tokens, each token as slow as with this method in this setting so far, else as
    in this setting, else as in any.
    """
    pace = _seconds_per_token(plan, results)
    if not pace:
        return None
    left = 0.0
    for pair in pairs:
        known = next(pace[key] for key in (pair, pair[0], None) if key in pace)
        left += sum(known) / len(known) * sum(_missing_budgets(plan, pair, results))
    return left


def _seconds_per_token(plan: Plan, results: Mapping[str, Any]) -> dict[Any, list[float]]:
    pace: dict[Any, list[float]] = {}
    for result in results.values():
        if result.get("seconds") is not None:
            for key in ((result["setting"], result["label"]), result["setting"], None):
                pace.setdefault(key, []).append(result["seconds"] / budget_of(plan, result["kind"]))
    return pace


def _missing_budgets(plan: Plan, pair: tuple[str, str], results: Mapping[str, Any]) -> Iterator[int]:
    """The budget of each cell that has not ended; while the rate is not chosen, every seed is still to come."""
    grid = grid_cells(plan, *pair)
    known, rate = next_cells(plan, pair, results)
    yield from (budget_of(plan, cell.kind) for cell in known if cell.name not in results)
    if rate is None and any(cell.name not in results for cell in grid):
        yield from [budget_of(plan, REPORT)] * len(plan.seeds)
