"""What `tropd train` shows and leaves, for a trainer in Python: progress, evaluations, summary, and the run's page."""

import atexit
import shlex
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from ..report.outcome import Outcome, ends, outcome
from ..report.run_folder import read_run
from ..report.run_page import PAGE
from . import console
from .progress import TrainingProgress
from .report import write_page

COLOURS = {None: "{}", True: "[green]{}[/green]", False: "[red]{}[/red]"}
STAGES = (("speed/rollout", "rollout"), ("speed/teacher", "teacher"), ("speed/update", "update"))


def show_end(history: Any, output_dir: str, *, steps: int, seconds: float, saved: bool, before: Any = None) -> None:
    """Write the page of a run that has ended, print how its metrics changed, what was written, and what to do next.

    `before` is the preflight's measurement; `None`: that of `preflight.json`, where there is one.
    """
    folder, screen = Path(output_dir), console.out()
    write_page([folder], folder / PAGE)
    took = console.duration(seconds)
    screen.print(f"\n[bold green]done[/bold green]: {steps} step{'' if steps == 1 else 's'} in {took}")
    _show_outcome(outcome(history, dict(read_run(folder).measurement if before is None else before)))
    speeds = [(label, ends(history, name)) for name, label in STAGES]
    if shown := ", ".join(f"{label} {speed[1]:,.0f}" for label, speed in speeds if speed is not None):
        screen.print(f"tokens per second at the end: {shown}")
    lines = {
        "model" if saved else "run": output_dir,
        "page": f"{folder / PAGE}: curves, evaluations, every logged token; open it in a browser",
        "in it": "run.json, metrics.jsonl, preflight.json, rollouts/ (`tropd show` prints them)",
    }
    lines |= {"next": f"tropd evaluate {shlex.quote(output_dir)} --benchmarks … --data … --out …"} if saved else {}
    screen.print("\n" + "\n".join(f"{what:<10} {where}" for what, where in lines.items()), markup=False)


def _show_outcome(found: Outcome) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", *found.titles, ""):
        table.add_column(column, justify="right" if column else "left")
    for row in found.rows:
        table.add_row(row.label, *row.values, COLOURS[row.well].format(row.moved))
    console.out().print(table, soft_wrap=False)
    if found.note:
        console.out().print(f"({found.note})", markup=False)


class TerminalReport(TrainingProgress):
    """The command line's progress, summary and page as a callback: `TrOPDTrainer(…, callbacks=[TerminalReport()])`.

    With `disable_tqdm=True` and `trainer.remove_callback(PrinterCallback)` it is alone on the screen.
    """

    def __init__(self, title: str = "train"):
        super().__init__(title)
        self._began = 0.0
        atexit.register(self.close)  # a training that failed leaves no moving bar behind

    def on_train_begin(self, args, state, control, **kwargs):
        self._began = time.monotonic()
        super().on_train_begin(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()
        if state.is_world_process_zero:
            show_end(
                state.log_history,
                args.output_dir,
                steps=state.global_step - self.first_step,
                seconds=time.monotonic() - self._began,
                saved=args.save_final_model,
            )
