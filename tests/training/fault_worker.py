"""A training from the command line that goes wrong in its second step on one of its ranks.

    python fault_worker.py FAULT RANK FIELDS...

Run by `test_faults.py` through `torch.distributed.run`. Writes into `fault.txt` when the fault happened.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback

from tropd import TrOPDTrainer
from tropd.cli.main import main
from tropd.teacher.local import LocalTeacher
from tropd.training import step, trainer
from tropd.training.logging import callbacks

Set = Callable[[object, str, object], None]
"""As `setattr`; a test may put everything back with its own."""


def happened() -> None:
    Path("fault.txt").write_text(str(time.time()))


def at_second_call(function: Callable, error: Exception) -> Callable:
    return at_call(2, function, error)


def at_call(number: int, function: Callable, error: Exception) -> Callable:
    calls = []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            happened()
            raise error
        return function(*arguments, **options)

    return failing


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def teacher(put: Set) -> None:
    """The teacher has no memory left for its second batch."""
    put(LocalTeacher, "score", at_second_call(LocalTeacher.score, NO_MEMORY))


def preflight(put: Set) -> None:
    """The teacher has no memory for the prompts that are looked at before training."""
    put(LocalTeacher, "score", at_call(1, LocalTeacher.score, NO_MEMORY))


def student(put: Set) -> None:
    """The student has no memory left for the scoring of its second batch; wants `rescore_rollouts`."""
    put(step, "score_student", at_second_call(step.score_student, NO_MEMORY))


def reward(put: Set) -> None:
    """The host has no reward for the second batch."""
    error = KeyError("answer")
    put(trainer, "no_reward", at_second_call(trainer.no_reward, error))
    trainer.no_reward.__name__ = "exactness"


def log(put: Set) -> None:
    """The disk has no room for the second line of the metrics."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    put(callbacks, "append_jsonl", at_second_call(callbacks.append_jsonl, error))


class Fault(TrainerCallback):
    """Happens between the second step's gradients and its update."""

    def __init__(self, fail: Callable[[], None]):
        self.fail = fail

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            happened()
            self.fail()


def alone(put: Set) -> None:
    """Something that nobody knows of raises."""

    def fail():
        raise RuntimeError("this rank has had enough")

    _add(put, Fault(fail))


def killed(put: Set) -> None:
    _add(put, Fault(lambda: os.kill(os.getpid(), signal.SIGKILL)))


def _add(put: Set, callback: TrainerCallback) -> None:
    build = TrOPDTrainer.__init__

    def with_callback(self, *arguments, callbacks=(), **options):
        build(self, *arguments, callbacks=[*callbacks, callback], **options)

    put(TrOPDTrainer, "__init__", with_callback)


FAULTS = {
    "teacher": teacher,
    "preflight": preflight,
    "student": student,
    "reward": reward,
    "log": log,
    "alone": alone,
    "killed": killed,
}

if __name__ == "__main__":
    fault, rank, *fields = sys.argv[1:]
    torch.set_num_threads(1)
    if os.environ["RANK"] == rank:
        FAULTS[fault](setattr)
    sys.exit(main(["train", *fields]))
