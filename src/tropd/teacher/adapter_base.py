"""A student's own base model as its teacher: under an adapter, one copy of the weights is both."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..models.hidden_states import rotates_by_length
from .local import LocalTeacher, TeacherScores


class BaseTeacher(LocalTeacher):
    """Scores and writes with the student while its adapter is switched off.

    Args:
        student: a `PeftModel`; its base model is frozen by the adapter, and nothing here changes what it trains.
        forward: what is called for a forward pass; the student by default.
        by_length: see `LocalTeacher`.
    """

    def __init__(self, student: Any, forward: Callable[..., Any] | None = None, by_length: bool = True):
        self.model = student
        self.forward = forward or student
        self.by_length = by_length and not rotates_by_length(student)

    def score(self, *args: Any, **kwargs: Any) -> TeacherScores:
        """As `LocalTeacher.score`."""
        with without_adapter(self.model):
            return super().score(*args, **kwargs)

    def write(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """As `LocalTeacher.write`."""
        with without_adapter(self.model):
            return super().write(*args, **kwargs)


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Inside, a `PeftModel` is its base model, in evaluation mode."""
    training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train(training)
