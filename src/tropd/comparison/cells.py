"""The cells of a plan: one run each, and the learning rate that the runs of the grid choose. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from .plan import Plan

GRID, REPORT = "grid", "report"


@dataclass(frozen=True)
class Cell:
    """One run: a method in a setting, at a learning rate, with a seed.

    A cell of the `grid` is measured on validation prompts and chooses a rate, one to `report` on test prompts.
    """

    setting: str
    label: str
    learning_rate: float
    seed: int
    kind: str

    @property
    def name(self) -> str:
        """Names its folder, and is unique in a comparison."""
        return f"{self.setting}--{self.label}--{self.kind}-lr{self.learning_rate:g}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.setting}/{self.label} {self.kind} lr {self.learning_rate:g} seed {self.seed}"


def budget_of(plan: Plan, kind: str) -> int:
    """Tokens that the student writes in a cell of this kind."""
    return plan.grid_tokens or plan.student_tokens if kind == GRID else plan.student_tokens


def grid_cells(plan: Plan, setting: str, label: str) -> list[Cell]:
    """A method at every learning rate; none where there is nothing to choose."""
    if len(plan.learning_rates) == 1 or plan.fixed_rate(setting, label) is not None:
        return []
    return [Cell(setting, label, rate, plan.grid_seed, GRID) for rate in plan.learning_rates]


def report_cells(plan: Plan, setting: str, label: str, learning_rate: float) -> list[Cell]:
    """A method at its chosen learning rate, with every seed."""
    return [Cell(setting, label, learning_rate, seed, REPORT) for seed in plan.seeds]


def pairs(plan: Plan, only: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Every setting with every method, or those that `only` names: a setting, label, or pattern as `multi-domain/*`."""
    every = [(setting, label) for setting in plan.settings for label in plan.methods]

    def fits(word: str, setting: str, label: str) -> bool:
        return word in (setting, label) or fnmatchcase(f"{setting}/{label}", word)

    for word in only:
        if not any(fits(word, *pair) for pair in every):
            raise ValueError(
                f"--only is {word!r}, which is not a setting ({', '.join(plan.settings)}), not a method "
                f"({', '.join(plan.methods)}), and not a pattern such as 'setting/method' or 'setting/*'."
            )
    return [pair for pair in every if not only or any(fits(word, *pair) for word in only)]


def choose_learning_rate(plan: Plan, setting: str, label: str, results: Mapping[str, Any]) -> float | None:
    """The grid's best rate by `select_on` on validation prompts, the smaller of two equals.

    A run that ended early, for example by collapse, is best only if all did. `None`: no run could be measured.
    `results` holds each cell of the grid by name.
    """
    fixed, cells = plan.fixed_rate(setting, label), grid_cells(plan, setting, label)
    if fixed is not None or not cells:
        return fixed or plan.learning_rates[0]
    sign = -1 if plan.select_on == "accuracy" else 1
    scored = [
        (bool(results[cell.name].get("failure")), sign * score, cell.learning_rate)
        for cell in cells
        if (score := score_of(results[cell.name], plan.select_on)) is not None
    ]
    return min(scored)[-1] if scored else None


def score_of(result: Mapping[str, Any], metric: str) -> float | None:
    """A run's score; `None` for one that ended in an error, or that has no such score.

    The scores of a run whose rollouts collapsed count: excluding them would flatter its method.
    """
    return (result.get("scores") or {}).get(metric)


def next_cells(plan: Plan, pair: tuple[str, str], results: Mapping[str, Any]) -> tuple[list[Cell], float | None]:
    """The cells of a setting and method that are known by now, and the rate once it is chosen.

    While a run of the grid is missing these are the grid's; then those with every seed, too.
    """
    grid = grid_cells(plan, *pair)
    if any(cell.name not in results for cell in grid):
        return grid, None
    rate = choose_learning_rate(plan, *pair, results)
    return [*grid, *([] if rate is None else report_cells(plan, *pair, rate))], rate


def count_cells(plan: Plan, pair: tuple[str, str], results: Mapping[str, Any]) -> int:
    """How many cells a setting and method will have had: none is reported where no rate could be chosen."""
    grid = grid_cells(plan, *pair)
    known, rate = next_cells(plan, pair, results)
    undecided = rate is None and any(cell.name not in results for cell in grid)
    return len(grid) + len(plan.seeds) if undecided else len(known)
