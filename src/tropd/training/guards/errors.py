"""Why a run stopped by itself. Each says what happened and where the last checkpoint is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec

P = ParamSpec("P")


class TrainingStopped(Exception):
    """A run that cannot continue; what it had saved is kept."""


class RolloutsCollapsed(TrainingStopped, RuntimeError):
    """The rollouts are empty or only repeat themselves: nothing is left to learn from. The checkpoint is kept."""


class NotFinite(TrainingStopped, FloatingPointError):
    """A loss, a gradient, a softmax or all of a teacher's scores are not finite; the step was not taken."""


class TeacherFailed(TrainingStopped, RuntimeError):
    """The teacher raised, or did not give one score for each requested token; nothing was learned from it."""


class RewardFailed(TrainingStopped, RuntimeError):
    """A reward function raised, or did not give one number for each completion; nothing was learned from it."""


class EngineFailed(TrainingStopped, RuntimeError):
    """vLLM raised, or did not answer, while it wrote rollouts or took the student's weights."""


class OutOfMemory(TrainingStopped, RuntimeError):
    """Memory ran out while the student wrote, was scored or learned; the teacher's is a `TeacherFailed`."""


class DataFailed(TrainingStopped, RuntimeError):
    """The data cannot be read further, or the training data hold no whole rollout batch."""


class LogNotWritten(TrainingStopped):
    """A record of the run cannot be written; those before it are whole."""


class ProcessLost(TrainingStopped, RuntimeError):
    """Another process of the run ended or stopped answering."""


def guard(
    explain: Callable[Concatenate[Exception, P], TrainingStopped | None],
) -> Callable[P, AbstractContextManager[None]]:
    """A context manager that stops the run with `explain(error, …)` where its block fails, the error as the cause.

    An error that `explain` has no sentence for propagates, and so does a `TrainingStopped`, which has its own.
    """

    @contextmanager
    @wraps(explain)
    def guarded(*args: P.args, **options: P.kwargs) -> Iterator[None]:
        try:
            yield
        except TrainingStopped:
            raise
        except Exception as error:
            stopped = explain(error, *args, **options)
            if stopped is None:
                raise
            raise stopped from error

    return guarded
