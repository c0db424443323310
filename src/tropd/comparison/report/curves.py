"""The logged series of cells, as lines with bands over seeds."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...report.charts import Line
from ...report.run_page import region_share
from .logged_series import Step

NEARLY = 0.8
"""Runs with nearly as many steps as the longest are aligned by their progress. A shorter one, which ended early, is
drawn at its own steps; a line ends where less than half of the runs continue."""
ROUNDING = 1e-9
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A chart of the report: its title with the unit, and its value of a step's metrics, `None` where it was not
    logged."""

    title: str
    value: Callable[[Step], float | None]
    log: bool = False
    zero: bool = False


def _logged(name: str) -> Callable[[Step], float | None]:
    return lambda step: step.get(name)


CURVES = (
    Curve("Trust fraction, 1 − TV", _logged("trust/fraction")),
    Curve("Gradient norm before clipping (log)", _logged("grad_norm"), log=True),
    Curve("Student entropy (nats per token)", _logged("entropy/student"), zero=True),
    Curve("Reverse KL, K1 estimate (nats per token)", _logged("kl/k1")),
    Curve("Student tokens per rollout", _logged("response/length"), zero=True),
    Curve("Region: outliers (share of tokens)", region_share("regions/num_outlier"), zero=True),
    Curve("Region: trusted (share of tokens)", region_share("regions/num_trust"), zero=True),
    Curve("Region: teacher prefix (share of tokens)", region_share("regions/num_guidance"), zero=True),
)
OF_EPISODES = (
    Curve("Trust fraction in the student's first turn", _logged("agent/trust_first_turn")),
    Curve("Trust fraction in its last turn", _logged("agent/trust_last_turn")),
    Curve("Reward of the rollouts", _logged("reward"), zero=True),
    Curve("Turns per rollout", _logged("agent/turns"), zero=True),
    Curve("Truncated rollouts (share)", _logged("agent/cut_share"), zero=True),
)
"""Where a run had tools."""


def line_of(label: str, number: int, runs: Sequence[Sequence[Step]], curve: Curve) -> Line:
    """Mean, smallest and largest over seeds of what runs logged in each stretch of their steps."""
    runs = [run for run in runs if any(curve.value(step) is not None for step in run)]
    many, last = max(map(len, runs), default=0), max((run[-1]["step"] for run in runs), default=0)
    rows: list[list[Point]] = [[] for _ in range(many)]
    for run in runs:
        end = run[-1]["step"]
        for place, points in _placed(run, curve, many, end if end >= NEARLY * last else last).items():
            rows[place].append((fmean(x for x, _ in points), fmean(value for _, value in points)))
    return _as_line(label, number, _over_seeds([row for row in rows if row and 2 * len(row) >= len(runs)]))


def _placed(run: Sequence[Step], curve: Curve, many: int, end: float) -> Mapping[int, list[Point]]:
    """Steps and values of a run by the part of the way to `end`, of `many`, that they lie in."""
    placed = defaultdict(list)
    for step in run:
        if (value := curve.value(step)) is not None:
            place = math.ceil(many * step["step"] / end - ROUNDING) - 1
            placed[min(max(place, 0), many - 1)].append((step["step"], value))
    return placed


def points_line(label: str, number: int, cells: Sequence[Mapping[str, Any]]) -> Line:
    """Accuracy at the few moments it was measured, in %."""
    runs = [
        [(p["step"], 100 * p["scores"]["accuracy"]) for p in cell["points"]] for cell in cells if cell.get("points")
    ]
    rows = [[run[n] for run in runs if len(run) > n] for n in range(max(map(len, runs), default=0))]
    return _as_line(label, number, _over_seeds([row for row in rows if 2 * len(row) >= len(runs)]))


def _over_seeds(rows: Sequence[Sequence[Point]]) -> list[tuple[float, float, float, float]]:
    found = []
    for row in rows:
        xs, values = zip(*row, strict=True)
        found.append((fmean(xs), fmean(values), min(values), max(values)))
    return found


def _as_line(label: str, number: int, rows: Sequence[tuple[float, float, float, float]]) -> Line:
    xs, means, lows, highs = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    return Line(label, number, xs, means, lows, highs)
