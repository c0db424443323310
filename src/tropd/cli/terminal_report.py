"""What `tropd train` shows and leaves, for a trainer in Python: progress, evaluations, summary, and the run's page."""

import atexit
import shlex
import time
from pathlib import Path
from typing import Any

from ..report.run_folder import read_run
from ..report.run_page import PAGE
from .progress import TrainingProgress
from .report import write_page
from .summary import Ended, show_summary


def show_end(history: Any, output_dir: str, *, steps: int, seconds: float, saved: bool, before: Any = None) -> None:
    """Write the page of a run that has ended, print its summary, what was written, and what to do next.

    Args:
        history: what was logged.
        output_dir: of the run.
        steps: taken now.
        seconds: what they took.
        saved: is the model there?
        before: the preflight's measurement; `None`: that of `preflight.json`, where there is one.
    """
    folder = Path(output_dir)
    write_page([folder], folder / PAGE)
    before = read_run(folder).measurement if before is None else before
    next_step = [("next", f"tropd evaluate {shlex.quote(output_dir)} --benchmarks … --data … --out …")] if saved else []
    show_summary(
        history,
        Ended(
            steps=steps,
            seconds=seconds,
            output_dir=output_dir,
            saved=saved,
            before=dict(before),
            written=[
                ("page", f"{folder / PAGE}: curves, evaluations, every logged token; open it in a browser"),
                ("in it", "run.json, metrics.jsonl, preflight.json, rollouts/ (`tropd show` prints them)"),
                *next_step,
            ],
        ),
    )


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
