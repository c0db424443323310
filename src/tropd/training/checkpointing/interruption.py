"""SIGTERM, SIGINT and SIGHUP while training: finish the step, write a checkpoint, leave with the usual exit code."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..guards.errors import TrainingStopped
from ..guards.faults import checkpoint_phrase

TOLD_TO_END = (signal.SIGTERM, signal.SIGHUP)
"""Signals by which a scheduler or a terminal ends a process."""
BY_DEFAULT = (signal.SIG_DFL, signal.default_int_handler)
"""Handlers that nobody has set. SIGINT is also ignored in processes that a script starts in the background."""
STDERR = 2
"""Of the process, whatever Python calls its stream."""


class Interrupted(TrainingStopped):
    """A signal stopped the run; its checkpoint is on disk.

    Attributes:
        signal: the signal's number.
        exit_code: the conventional one, 128 more.
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
        again = "; Ctrl-C again exits immediately" if number == signal.SIGINT else ""
        # Not by print: the signal may have come while a line was being printed, and a stream cannot be entered twice.
        with suppress(OSError):  # nobody reads it; the run saves and stops anyway
            os.write(STDERR, f"{name}: a checkpoint is written after this step{again}\n".encode())

    @contextmanager
    def caught(self, numbers: Sequence[int] = (*TOLD_TO_END, signal.SIGINT)) -> Iterator["Signals"]:
        """Catch those signals while the block runs that would otherwise end the process.

        An existing handler stays (a scheduler's, a notebook's), and `nohup` keeps ignoring SIGHUP. Outside the main
        thread Python cannot catch them.
        """
        here = threading.current_thread() is threading.main_thread()
        wanted = []
        for number in numbers if here else ():
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            if signal.getsignal(number) in BY_DEFAULT or (is_ignored and number == signal.SIGINT):
                wanted.append(number)
        earlier = {number: signal.signal(number, self) for number in wanted}
        try:
            yield self
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


@contextmanager
def stopping_at_signals(trainer: Any) -> Iterator[None]:
    """Inside, the signals in `trainer.stops_at` stop a run with a checkpoint, unless `stop_at_signals` is off.

    Raises:
        Interrupted: one did.
    """
    if not trainer.args.stop_at_signals:
        yield
        return
    trainer.signals = signals = Signals()
    with signals.caught(trainer.stops_at):
        yield
    if trainer.stopped_by_signal:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step}; {checkpoint_phrase(trainer.args.output_dir)}. Continue "
            "with resume_from_checkpoint (latest on the command line, True in Python).",
            trainer.stopped_by_signal,
        )
    if signals.received:  # after the last step: the run is complete, and the process is to end anyway
        signal.raise_signal(signals.received)
