"""A run ends when the student has written its tokens; a guided run plans its schedule so that it ends there, too.

Teacher prefixes are annealed over the steps of a run, and leave the student fewer tokens to write while they are long.
So the number of steps is planned: from the lengths of the teacher's responses before the run, and after every step
again from what was really written. Without prefixes the plan is only a forecast.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from transformers import TrainerCallback

from ...objective.methods import Method
from ...objective.schedules import guidance_fraction, prefix_length

MOST_STEPS = 8
"""A run that is not done after this many times its planned steps writes almost nothing, and is stopped."""

PRIOR = 0.1
"""The forecast before the run counts as much as this part of the budget, so that a few odd steps change little."""


class Forecast:
    """How many tokens a student writes in a step, and how many steps a budget takes."""

    def __init__(
        self,
        method: Method,  # its guidance is read
        response_lengths: Sequence[int],  # tokens of each prompt's teacher response, without its end
        max_length: int,  # tokens of prefix and continuation together
        rows: int,  # sequences of a step
        min_tail: int = 1,  # tokens left to the student
        tail: Callable[[float], float] | None = None,  # tokens of the student by α, where no prefix's tail is its own
    ):
        self.method, self.lengths, self.max_length = method, list(response_lengths), max_length
        self.rows, self.min_tail = rows, min_tail
        self._by_percent = [(tail or self._mean_tail)(percent / 100) for percent in range(101)]

    def tokens(self, step: int, steps: int) -> float:
        """Tokens of step `step`, counted from 0, in a run of `steps`: a response as long as the teacher's, less its
        prefix."""
        fraction = guidance_fraction(self.method.guidance_schedule, step, steps)
        return self.rows * self._by_percent[round(100 * fraction)]

    def steps(self, budget: float, *, done: int = 0, written: float = 0.0, ratio: float = 1.0) -> int:
        """The smallest number of steps in which `budget` tokens are written, of which `done` steps have `written` some.

        `ratio` is tokens of a step by the forecast's.
        """
        missing = (budget - written) / ratio
        if not self.method.guided:
            return done + max(math.ceil(missing / self.tokens(0, 1)), 1)

        def enough(steps: int) -> bool:
            return sum(self.tokens(step, steps) for step in range(done, steps)) >= missing

        low, high = done, done + 1
        while not enough(high):
            low, high = high, done + 2 * (high - done)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def _mean_tail(self, fraction: float) -> float:
        return fmean(
            min(length + 1, self.max_length)
            - prefix_length(
                self.method.guidance_length,
                fraction,
                response_length=length,
                max_length=self.max_length,
                min_tail=self.min_tail,
            )
            for length in self.lengths
        )


def tail_of_turns(turns: Sequence[Sequence[int]], fraction: float, cap: int | None, is_mixed: bool) -> float:
    """Mean number of tokens that a student writes of episodes in which the teacher takes whole turns, never the last.

    `turns` are the lengths of each episode's, were it the teacher's; `fraction` is α. The teacher takes turns while it
    has written fewer than ⌊α·`cap`⌋ tokens; without a cap ⌊α·K⌋ of K turns; with `is_mixed` each with probability α.

    >>> tail_of_turns([[10, 20, 3]], 0.4, None, False), tail_of_turns([[10, 20, 3]], 0.4, 30, False)
    (23.0, 3.0)
    """
    if is_mixed:
        return fmean((1 - fraction) * sum(episode) + fraction * episode[-1] for episode in turns)
    tails = []
    for episode in turns:
        # The epsilon undoes rounding, as in `prefix_length`.
        left = int(fraction * len(episode) + 1e-9) if cap is None else int(fraction * cap + 1e-9)
        own = list(episode)
        while left > 0 and len(own) > 1:
            left -= 1 if cap is None else own[0]
            own = own[1:]
        tails.append(sum(own))
    return fmean(tails)


class TokenBudget(TrainerCallback):
    """Ends a run at the step whose end is nearest to `budget`; `state.max_steps`, which schedules read, is kept there.

    So far the student has `written` tokens and `read` tokens of prefixes; `unspent` says that it hardly wrote any.
    """

    def __init__(self, forecast: Forecast, budget: int, on_written: Callable[[int, float], None] = lambda *_: None):
        self.forecast, self.budget, self.on_written = forecast, budget, on_written
        self.planned = forecast.steps(budget)
        self.written = self.read = self.expected = 0.0
        self.unspent = False

    @property
    def most_steps(self) -> int:
        """What to give the trainer as `max_steps`: a bound that a healthy run never meets."""
        return MOST_STEPS * self.planned + 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.max_steps = self._beyond(0, self.planned)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.expected += self.forecast.tokens(state.global_step - 1, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "response/length" not in logs:
            return
        written = logs["response/length"] * self.forecast.rows
        self.written += written
        self.read += logs.get("guidance/prefix_length", 0.0) * self.forecast.rows
        self.on_written(state.global_step, self.written)
        self.unspent = state.global_step >= self.most_steps
        if self.unspent or self.written + written / 2 >= self.budget:
            control.should_training_stop = True
        else:
            state.max_steps = self._plan(state.global_step)

    def _plan(self, done: int) -> int:
        prior = PRIOR * self.budget
        ratio = (self.written + prior) / (self.expected + prior)
        steps = self.forecast.steps(self.budget, done=done, written=self.written, ratio=ratio)
        return self._beyond(done, steps)

    def _beyond(self, done: int, steps: int) -> int:
        """The plan, but at least a step beyond the next: the host ends at its plan, before the tokens are counted."""
        return max(min(steps, self.most_steps), done + 2)


def sentence(written: float, budget: int, steps: int) -> str:
    """What is wrong with a run that did not write its tokens."""
    return (
        f"stopped after {steps} steps with {math.floor(written):,} of {budget:,} tokens written: the student has "
        "almost stopped writing."
    )
