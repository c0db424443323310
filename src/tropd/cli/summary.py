"""What became of a run, on one screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..report.outcome import ends, outcome
from . import console

COLOURS = {None: "{}", True: "[green]{}[/green]", False: "[red]{}[/red]"}
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
        written: what else there is to look at, and where; or what to type.
    """

    steps: int
    seconds: float
    output_dir: str
    saved: bool
    before: dict[str, Any]
    written: Sequence[tuple[str, str]] = ()


def show_summary(history: Sequence[dict[str, Any]], ended: Ended) -> None:
    """Print how the metrics moved, how fast it was, and where everything is."""
    from rich.table import Table

    screen = console.out()
    steps = f"{ended.steps} step" + ("" if ended.steps == 1 else "s")
    screen.print(f"\n[bold green]done[/bold green]: {steps} in {console.duration(ended.seconds)}")
    found = outcome(history, ended.before)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", *found.titles, ""):
        table.add_column(column, justify="right" if column else "left")
    for row in found.rows:
        table.add_row(row.label, *row.values, COLOURS[row.well].format(row.moved))
    screen.print(table, soft_wrap=False)
    if found.note:
        screen.print(f"({found.note})", markup=False)
    speeds = [(label, ends(history, name)) for name, label in STAGES]
    shown = ", ".join(f"{label} {speed[1]:,.0f}" for label, speed in speeds if speed is not None)
    if shown:
        screen.print(f"tokens per second at the end: {shown}")
    screen.print(f"\n{'model' if ended.saved else 'run':<10} {ended.output_dir}", markup=False)
    for what, path in ended.written:
        screen.print(f"{what:<10} {path}", markup=False)
