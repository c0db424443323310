"""What became of a run, on one screen."""

from collections.abc import Sequence
from typing import Any

from . import console

# name, label, format, and whether a good run makes it rise (+1), fall (-1) or neither (0)
ROWS = (
    ("kl/k1", "reverse KL, K1 estimate (nats)", ".3f", -1),
    ("trust/fraction", "trust fraction, 1 − TV", ".3f", 1),
    ("log_ratio/p01", "1% quantile of r (nats)", ".2f", 1),
    ("entropy/student", "student entropy (nats)", ".3f", 0),
    ("entropy/teacher", "teacher entropy (nats)", ".3f", 0),
    ("response/length", "response length (tokens)", ".1f", 0),
    ("response/eos_share", "responses that end", ".1%", 1),
    ("response/collapsed_share", "collapsed responses", ".1%", -1),
    ("grad_norm", "gradient norm before clipping", ".3g", 0),
    ("reward", "reward", ".3f", 1),
)
STAGES = (("speed/rollout", "rollout"), ("speed/teacher", "teacher"), ("speed/update", "update"))


def ends(history: Sequence[dict[str, float]], name: str) -> tuple[float, float] | None:
    """Means of a metric over the first and the last tenth of its logged values.

    >>> ends([{"a": 1.0}, {"b": 0.0}, {"a": 3.0}], "a")
    (1.0, 3.0)
    """
    values = [entry[name] for entry in history if name in entry]
    if not values:
        return None
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def show_summary(
    history: Sequence[dict[str, Any]], *, steps: int, seconds: float, output_dir: str, saved: bool
) -> None:
    """Print how the metrics moved, how fast it was, and where everything is."""
    from rich.table import Table

    screen = console.out()
    screen.print(f"\n[bold green]done[/bold green]: {steps} steps in {console.duration(seconds)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("start", "end", ""):
        table.add_column(column, justify="right")
    for name, label, form, good in ROWS:
        moved = ends(history, name)
        if moved is not None:
            table.add_row(label, f"{moved[0]:{form}}", f"{moved[1]:{form}}", _direction(*moved, good))
    screen.print(table, soft_wrap=False)
    speeds = [(label, ends(history, name)) for name, label in STAGES]
    shown = ", ".join(f"{label} {speed[1]:,.0f}" for label, speed in speeds if speed is not None)
    if shown:
        screen.print(f"tokens per second at the end: {shown}")
    screen.print(f"\n{'model' if saved else 'run'}      {output_dir}", markup=False)
    screen.print("look at  run.json, metrics.jsonl, rollouts/ (every token with its region), preflight.json in it")


def _direction(start: float, end: float, good: int) -> str:
    """An arrow, green where the metric moved as it does in a good run; no colour for a tie or a neutral metric."""
    change = end - start
    if abs(change) <= 0.01 * max(abs(start), abs(end), 1e-9):
        return "="
    arrow = "↑" if change > 0 else "↓"
    if good == 0:
        return arrow
    return f"[green]{arrow}[/green]" if change * good > 0 else f"[red]{arrow}[/red]"
