"""Training as a person watches it: a bar or a plain log, with the numbers that tell whether it goes well."""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
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

    An evaluation has a line of its own, and those to come are part of the time left once one was timed. `first_step`
    counts the steps that were done when training began: those of a checkpoint, or 0.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic):
        self.title, self._clock = title, clock
        self._stack = ExitStack()
        self._advance: Any = None
        self._note = ""
        self.first_step = 0
        self._pace = Pace()

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_step = state.global_step
        self._pace = Pace(steps=state.max_steps, every=_steps_between_evaluations(args, state))
        self._pace.begin(self._clock(), state.global_step)
        if state.is_world_process_zero:
            shown = console.progress(self.title, state.max_steps, "steps", done=state.global_step)
            self._advance = self._stack.enter_context(shown)

    def on_step_end(self, args, state, control, **kwargs):
        if self._advance is not None:
            self._pace.step(self._clock(), state.global_step)
            self._advance(1, note=self._note, left=self._pace.seconds_left())

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self._advance is None or not metrics:  # asked for outside of a training
            return
        clock = next((name for name in metrics if name.endswith("_runtime")), None)  # of several sets each has its own
        if clock is None:  # benchmarks beside several data sets, or none: `on_log` says them
            return
        self._pace.evaluated(seconds := metrics[clock])
        prefix = clock.removesuffix("runtime")
        logged = next((entry for entry in reversed(state.log_history) if f"{prefix}loss" in entry), metrics)
        numbers = note({name.removeprefix(prefix): value for name, value in logged.items()})
        what = prefix.removeprefix("eval_").removesuffix("_")
        named = f"evaluation of {what!r}" if what else "evaluation"
        console.say(f"{named} after step {state.global_step}: {numbers}  ({console.duration(seconds)})")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self._note = note(logs) if args.logging_steps == 1 else f"(step {state.global_step}: {note(logs)})"
        if logs and state.is_world_process_zero and (scores := accuracies(logs)):
            console.say(f"step {state.global_step}: {scores}")

    def close(self) -> None:
        """Take the bar off the screen, whether training ended or failed."""
        self._stack.close()
        self._advance = None


def _steps_between_evaluations(args: Any, state: Any) -> int | None:
    """By the settings; `None` where nothing is evaluated, or where it is not known yet."""
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if strategy == "steps":
        return int(state.eval_steps or args.eval_steps)
    return (
        max(1, round(state.max_steps / args.num_train_epochs)) if strategy == "epoch" and args.max_steps <= 0 else None
    )


@dataclass
class Pace:
    """How long steps and evaluations take, and what is left of both."""

    steps: int = 0
    every: int | None = None
    _done: int = 0
    _first: int = 0
    _started: float = 0.0
    _now: float = 0.0
    _evaluations: dict[int, float] = field(default_factory=dict)

    def begin(self, now: float, done: int) -> None:
        self._started = self._now = now
        self._first = self._done = done

    def step(self, now: float, done: int) -> None:
        self._now, self._done = now, done

    def evaluated(self, seconds: float) -> None:
        """An evaluation has ended; those of several data sets after one step are one."""
        self._evaluations[self._done] = self._evaluations.get(self._done, 0.0) + seconds

    def seconds_left(self) -> float | None:
        """Of steps and evaluations; `None` before the first step."""
        if self._done == self._first:
            return None
        each = (self._now - self._started - sum(self._evaluations.values())) / (self._done - self._first)
        return max(each, 0.0) * (self.steps - self._done) + self._of_evaluations()

    def _of_evaluations(self) -> float:
        """Seconds of those to come, as long as those before in the mean; the one due now is one of them."""
        if not self.every or not self._evaluations:
            return 0.0
        to_come = self.steps // self.every - (self._done - 1) // self.every
        return to_come * sum(self._evaluations.values()) / len(self._evaluations)


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
