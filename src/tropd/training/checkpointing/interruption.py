"""SIGTERM, SIGINT and SIGHUP while training: finish the step, write a checkpoint, leave with the usual exit code."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import TrainerCallback

from ..guards.errors import TrainingStopped

STDERR = 2
"""Of the process, whatever Python calls its stream."""


class Interrupted(TrainingStopped):
    """A signal stopped the run; its checkpoint is on disk.

    Attributes:
        signal: the signal's number; the conventional exit code is 128 more.
    """

    def __init__(self, sentence: str, number: int):
        super().__init__(sentence)
        self.signal = number

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


class Signals:
    """Remembers that SIGTERM, SIGINT or SIGHUP arrived; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received = 0

    def __call__(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        self.received = number
        name = signal.Signals(number).name
        again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
        # Not by print: the signal may have come while a line was being printed, and a stream cannot be entered twice.
        with suppress(OSError):  # nobody listens; the run saves and stops all the same
            os.write(STDERR, f"{name}: a checkpoint is written after this step{again}\n".encode())

    @contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Catch the signals while the block runs; the handlers before it come back. `nohup` goes on ignoring SIGHUP."""
        wanted = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        earlier = {number: signal.signal(number, self) for number in wanted}
        try:
            yield self
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


class StopAtSignal(TrainerCallback):
    """Saves and stops after the step in which any process received a signal, all processes at the same one."""

    def __init__(self, signals: Signals, trainer: Any):
        self.signals, self.trainer = signals, trainer

    def on_step_end(self, args, state, control, **kwargs):
        received = int(self.trainer.ranks.max(torch.tensor([self.signals.received]))[0])
        if received:
            self.trainer.stopped_by_signal = received
            control.should_save = control.should_training_stop = True
