"""What cells logged over their steps, as lines with bands over seeds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..report.charts import Line

POINTS_A_LINE = 60
Step = Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """A chart of the report.

    Attributes:
        title: with the unit.
        value: of a step's metrics; `None` where it was not logged.
        log: is the axis logarithmic?
        zero: does the axis show 0?
    """

    title: str
    value: Callable[[Step], float | None]
    log: bool = False
    zero: bool = False


def _logged(name: str) -> Callable[[Step], float | None]:
    return lambda step: step.get(name)


def _share(name: str) -> Callable[[Step], float | None]:
    """A region's tokens by those of all regions; a region without any is not logged."""
    regions = ("regions/num_trust", "regions/num_outlier", "regions/num_guidance")

    def share(step: Step) -> float | None:
        total = sum(step.get(region, 0.0) for region in regions)
        return step.get(name, 0.0) / total if total else None

    return share


CURVES = (
    Curve("Trust fraction, 1 − TV", _logged("trust/fraction")),
    Curve("Gradient norm before clipping (log)", _logged("grad_norm"), log=True),
    Curve("Student entropy (nats a token)", _logged("entropy/student"), zero=True),
    Curve("Reverse KL, K1 estimate (nats a token)", _logged("kl/k1")),
    Curve("Tokens the student writes in a rollout", _logged("response/length"), zero=True),
    Curve("Region: outliers (share of tokens)", _share("regions/num_outlier"), zero=True),
    Curve("Region: trusted (share of tokens)", _share("regions/num_trust"), zero=True),
    Curve("Region: teacher prefix (share of tokens)", _share("regions/num_guidance"), zero=True),
)


def read_steps(folder: Path) -> list[dict[str, float]]:
    """The metrics of each step of a run; none where nothing was logged."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [line for line in lines if "response/length" in line]


def line_of(label: str, number: int, runs: Sequence[Sequence[Step]], curve: Curve) -> Line:
    """Mean, smallest and largest over seeds at each step that all runs reached; many steps become averages of a few."""
    columns = [[(step["step"], value) for step in run if (value := curve.value(step)) is not None] for run in runs]
    columns = [thinned(column) for column in columns if column]
    length = min(map(len, columns), default=0)
    rows = [[column[n] for column in columns] for n in range(length)]
    values = [[value for _, value in row] for row in rows]
    return Line(
        label,
        number,
        xs=[fmean(step for step, _ in row) for row in rows],
        means=[fmean(row) for row in values],
        lows=[min(row) for row in values],
        highs=[max(row) for row in values],
    )


def points_line(label: str, number: int, cells: Sequence[Mapping[str, Any]]) -> Line:
    """Accuracy at the few moments it was measured, in %."""
    runs = [
        [(p["step"], 100 * p["scores"]["accuracy"]) for p in cell["points"]] for cell in cells if cell.get("points")
    ]
    length = min(map(len, runs), default=0)
    rows = [[run[n] for run in runs] for n in range(length)]
    values = [[value for _, value in row] for row in rows]
    xs = [fmean(step for step, _ in row) for row in rows]
    return Line(label, number, xs, [fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def thinned(column: Sequence[tuple[float, float]], most: int = POINTS_A_LINE) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours.

    >>> thinned([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)], most=2)
    [(1.5, 2.0), (3.5, 6.0)]
    """
    size = -(-len(column) // most)
    groups = [column[start : start + size] for start in range(0, len(column), size)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]
