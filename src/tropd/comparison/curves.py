"""What cells logged over their steps, as lines with bands over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..report.charts import Line
from ..training.run_directory import read_jsonl

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
    return [line for line in read_jsonl(file) if "response/length" in line]


def line_of(label: str, number: int, runs: Sequence[Sequence[Step]], curve: Curve) -> Line:
    """Mean, smallest and largest over seeds, step by step; many steps become the averages of a few."""
    columns = [[(step["step"], value) for step in run if (value := curve.value(step)) is not None] for run in runs]
    rows = [(x, (mean, low, high)) for x, mean, low, high in _over_seeds([column for column in columns if column])]
    return _as_line(label, number, thinned(rows))


def points_line(label: str, number: int, cells: Sequence[Mapping[str, Any]]) -> Line:
    """Accuracy at the few moments it was measured, in %."""
    runs = [
        [(p["step"], 100 * p["scores"]["accuracy"]) for p in cell["points"]] for cell in cells if cell.get("points")
    ]
    return _as_line(label, number, [(x, (mean, low, high)) for x, mean, low, high in _over_seeds(runs)])


Column = Sequence[tuple[float, float]]


def _over_seeds(columns: Sequence[Column]) -> list[tuple[float, float, float, float]]:
    """Step, mean, smallest and largest, for as long as at least half of the runs go on; one may have ended early."""
    found = []
    for n in range(max(map(len, columns), default=0)):
        row = [column[n] for column in columns if len(column) > n]
        if 2 * len(row) < len(columns):
            break
        values = [value for _, value in row]
        found.append((fmean(step for step, _ in row), fmean(values), min(values), max(values)))
    return found


def _as_line(label: str, number: int, rows: Sequence[tuple[float, tuple[float, ...]]]) -> Line:
    means, lows, highs = ([values[place] for _, values in rows] for place in range(3))
    return Line(label, number, [x for x, _ in rows], means, lows, highs)


def thinned(rows: Sequence[tuple[float, tuple[float, ...]]], most: int = POINTS_A_LINE) -> list[tuple[float, tuple]]:
    """At most so many rows, each the mean of its neighbours.

    >>> thinned([(1, (1.0, 0.0)), (2, (3.0, 0.0)), (3, (5.0, 1.0)), (4, (7.0, 1.0))], most=2)
    [(1.5, (2.0, 0.0)), (3.5, (6.0, 1.0))]
    """
    size = max(-(-len(rows) // most), 1)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        (fmean(x for x, _ in group), tuple(map(fmean, zip(*(values for _, values in group), strict=True))))
        for group in groups
    ]
