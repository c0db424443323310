"""Training as a person watches it: a bar or a plain log, with the numbers that tell whether it goes well."""

import re
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from . import console

ACCURACY = re.compile(r"eval_benchmark/.*/accuracy")

SHOWN = (
    ("loss", "loss", ".4f"),
    ("trust/fraction", "trust", ".3f"),
    ("kl/k1", "k1", ".3f"),
    ("grad_norm", "grad norm", ".3g"),
    ("response/length", "length", ".0f"),
    ("guidance/prefix_length", "prefix", ".0f"),
)


class TrainingProgress(TrainerCallback):
    """Advances a progress each step, with the latest logged numbers beside it. Close it when training has ended.

    Attributes:
        first_step: steps that were done when training began: those of a checkpoint, or 0.
    """

    def __init__(self, title: str):
        self.title = title
        self._stack = ExitStack()
        self._advance: Any = None
        self._note = ""
        self.first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_step = state.global_step
        if state.is_world_process_zero:
            shown = console.progress(self.title, state.max_steps, "steps", done=state.global_step)
            self._advance = self._stack.enter_context(shown)

    def on_step_end(self, args, state, control, **kwargs):
        if self._advance is not None:
            self._advance(1, note=self._note)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self._note = note(logs) if args.logging_steps == 1 else f"(step {state.global_step}: {note(logs)})"
        if logs and state.is_world_process_zero and (scores := accuracies(logs)):
            console.say(f"step {state.global_step}: {scores}")

    def close(self) -> None:
        """Take the bar off the screen, whether training ended or failed."""
        self._stack.close()


def accuracies(logs: dict[str, float]) -> str:
    """What an evaluation says of its benchmarks.

    >>> accuracies({"eval_loss": 0.1, "eval_benchmark/gsm8k/accuracy": 0.125})
    'gsm8k 12.5% right'
    """
    found = {name.split("/")[1]: logs[name] for name in logs if ACCURACY.fullmatch(name)}
    return ", ".join(f"{name} {value:.1%} right" for name, value in found.items())


def note(logs: dict[str, float]) -> str:
    """The numbers of a log that are worth a glance.

    >>> note({"loss": 0.25, "trust/fraction": 0.9, "guidance/prefix_length": 0.0})
    'loss 0.2500, trust 0.900, prefix 0'
    """
    return ", ".join(f"{label} {logs[name]:{form}}" for name, label, form in SHOWN if name in logs)
