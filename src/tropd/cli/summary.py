"""What became of a run, on one screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import console


@dataclass(frozen=True)
class Row:
    """A line of the summary.

    Attributes:
        metric: name in the logs.
        label: what a person reads.
        form: how the number is written.
        good: does a good run make it rise (+1), fall (−1), or neither (0)?
        preflight: the same quantity in the preflight's measurement, or `None`.
    """

    metric: str
    label: str
    form: str
    good: int
    preflight: str | None = None


ROWS = (
    Row("kl/k1", "reverse KL, K1 estimate (nats)", ".3f", -1, "k1"),
    Row("trust/fraction", "trust fraction, 1 − TV", ".3f", 1, "trust_fraction"),
    Row("log_ratio/p01", "1% quantile of r (nats)", ".2f", 1),
    Row("entropy/student", "student entropy (nats)", ".3f", 0, "student_entropy"),
    Row("entropy/teacher", "teacher entropy (nats)", ".3f", 0, "teacher_entropy"),
    Row("response/length", "response length (tokens)", ".1f", 0, "mean_length"),
    Row("response/truncated_share", "responses cut at the limit", ".1%", -1, "truncated_share"),
    Row("response/collapsed_share", "collapsed responses", ".1%", -1, "collapsed_share"),
    Row("grad_norm", "gradient norm before clipping", ".3g", 0),
    Row("reward", "reward", ".3f", 1),
)
STAGES = (("speed/rollout", "rollout"), ("speed/teacher", "teacher"), ("speed/update", "update"))


@dataclass(frozen=True)
class Ended:
    """A run that is over.

    Attributes:
        steps: optimiser steps taken now.
        seconds: what they took.
        output_dir: where everything is.
        saved: is the model there?
        before: the preflight's measurement, or an empty dictionary.
    """

    steps: int
    seconds: float
    output_dir: str
    saved: bool
    before: dict[str, Any]


def ends(history: Sequence[dict[str, float]], name: str) -> tuple[float, float] | None:
    """Means of a metric over the first and the last tenth of its logged values.

    >>> ends([{"a": 1.0}, {"b": 0.0}, {"a": 3.0}], "a")
    (1.0, 3.0)
    """
    values = [entry[name] for entry in history if entry.get(name) is not None]  # not a number is no number
    if not values:
        return None
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def show_summary(history: Sequence[dict[str, Any]], ended: Ended) -> None:
    """Print how the metrics moved, how fast it was, and where everything is."""
    from rich.table import Table

    screen = console.out()
    steps = f"{ended.steps} step" + ("" if ended.steps == 1 else "s")
    screen.print(f"\n[bold green]done[/bold green]: {steps} in {console.duration(ended.seconds)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("preflight" if ended.before else "start", "end", ""):
        table.add_column(column, justify="right")
    for row in ROWS:
        cells = _cells(row, history, ended.before)
        if cells is not None:
            table.add_row(*cells)
    screen.print(table, soft_wrap=False)
    speeds = [(label, ends(history, name)) for name, label in STAGES]
    shown = ", ".join(f"{label} {speed[1]:,.0f}" for label, speed in speeds if speed is not None)
    if shown:
        screen.print(f"tokens per second at the end: {shown}")
    screen.print(f"\n{'model' if ended.saved else 'run'}      {ended.output_dir}", markup=False)
    screen.print("look at  run.json, metrics.jsonl, rollouts/ (every token with its region), preflight.json in it")


def _cells(row: Row, history: Sequence[dict[str, float]], before: dict[str, Any]) -> tuple[str, str, str, str] | None:
    """Label, start, end, direction. After a preflight, which has no teacher prefixes, the start is the preflight's."""
    moved = ends(history, row.metric)
    if moved is None:
        return None
    start = before.get(row.preflight or "") if before else moved[0]
    if start is None:
        return row.label, "", f"{moved[1]:{row.form}}", ""
    return row.label, f"{start:{row.form}}", f"{moved[1]:{row.form}}", _direction(start, moved[1], row.good)


def _direction(start: float, end: float, good: int) -> str:
    """An arrow, green where the metric moved as it does in a good run; no colour for a tie or a neutral metric."""
    change = end - start
    if abs(change) <= 0.01 * max(abs(start), abs(end), 1e-9):
        return "="
    arrow = "↑" if change > 0 else "↓"
    if good == 0:
        return arrow
    return f"[green]{arrow}[/green]" if change * good > 0 else f"[red]{arrow}[/red]"
