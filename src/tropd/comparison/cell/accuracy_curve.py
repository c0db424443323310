"""Accuracy over a run: measured on a few validation prompts at a few moments, without touching the run."""

import time
from collections.abc import Callable
from typing import Any


class Points:
    """Measures a model's scores when each `1/number` of the budget is written, and at the `start`, the untrained
    student's.

    `found` has step, student tokens and scores of each point; `seconds` what measuring took. `trainer` is set once it
    is built.
    """

    trainer: Any = None

    def __init__(self, measure: Callable[[Any], dict[str, float]], budget: int, number: int, start: dict[str, float]):
        self.measure, self.budget, self.number = measure, budget, number
        self.found: list[dict[str, Any]] = [{"step": 0, "student_tokens": 0, "scores": start}] if number else []
        self.seconds = 0.0

    def at(self, step: int, written: float) -> None:
        """After step `step`, when the student has written this many tokens."""
        # Half a step's tokens may be missing at the end of a run, hence the small allowance.
        due = bool(self.number) and written >= 0.98 * len(self.found) * self.budget / self.number
        if not due or len(self.found) > self.number:
            return
        started = time.perf_counter()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        training = model.training
        try:
            scores = self.measure(model.eval())
        finally:
            model.train(training)
        self.found.append({"step": step, "student_tokens": round(written), "scores": scores})
        self.seconds += time.perf_counter() - started
