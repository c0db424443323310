"""Forecast of the time that the missing cells will take, from the finished ones. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from .cells import REPORT, Cell, budget_of, grid_cells, next_cells
from .plan import Plan

GUIDED = 2.0
"""A run with teacher prefixes takes about this many times as long for its tokens, since it takes more steps. Assumed
until the first such run has ended. On the proving ground it was 2.1 (`tropd` beside `opd`)."""


class Pace:
    """Seconds a token so far, by setting and method.

    A token is as slow as with this method in this setting, else as in this setting with prefixes or without, else as in
    any.
    """

    def __init__(self, plan: Plan, results: Mapping[str, Any]):
        self.plan, self.results = plan, results
        self._known: dict[Any, list[float]] = {}
        own = [result for result in results.values() if not result.get("taken_from")]
        for result in own or results.values():  # another machine's are better than nothing
            if result.get("seconds") is not None and result["label"] in plan.methods:
                for key in self._keys(result["setting"], result["label"]):
                    self._known.setdefault(key, []).append(result["seconds"] / budget_of(plan, result["kind"]))

    def of(self, setting: str, label: str) -> float | None:
        """Seconds a token; `None` before the first cell has ended."""
        for key in self._keys(setting, label):
            if key in self._known:
                return fmean(self._known[key])
        guided = self.plan.method_of(label).guided
        other = self._known.get((None, not guided))
        return None if other is None else fmean(other) * (GUIDED if guided else 1 / GUIDED)

    def seconds_of(self, cell: Cell) -> float | None:
        """The whole cell's."""
        pace = self.of(cell.setting, cell.label)
        return None if pace is None else pace * budget_of(self.plan, cell.kind)

    def of_missing(self, pairs: Sequence[tuple[str, str]]) -> float | None:
        """Seconds that one worker needs for the missing cells; `None` before the first cell has ended."""
        paces = [(self.of(*pair), pair) for pair in pairs]
        known = [pace * sum(self._missing_budgets(pair)) for pace, pair in paces if pace is not None]
        return sum(known) if len(known) == len(pairs) else None

    def _keys(self, setting: str, label: str) -> tuple[Any, ...]:
        guided = self.plan.method_of(label).guided
        return (setting, label), (setting, guided), (None, guided)

    def _missing_budgets(self, pair: tuple[str, str]) -> Iterator[int]:
        """The budget of each cell that has not ended; while the rate is not chosen, every seed is still to come."""
        grid = grid_cells(self.plan, *pair)
        cells, rate = next_cells(self.plan, pair, self.results)
        yield from (budget_of(self.plan, cell.kind) for cell in cells if cell.name not in self.results)
        if rate is None and any(cell.name not in self.results for cell in grid):
            yield from [budget_of(self.plan, REPORT)] * len(self.plan.seeds)
