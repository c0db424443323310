"""Rows for verl: prompts in the order of training, each with the teacher prefix of its step.

verl does not tell a loss how far training is, and an agent loop only where its trainer is V1. So the schedule is
written into the data: row i is for step i // batch + 1, and its prefix has the length of that step.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..objective.methods import Method
from ..objective.schedules import guidance_fraction, prefix_length

PREFIX, STEP = "tropd_prefix_ids", "tropd_step"


@dataclass(frozen=True)
class Prompt:
    """A prompt, the teacher's response without its ending, and what verl's rows carry beside."""

    messages: list[dict[str, Any]]
    response_ids: Sequence[int] = ()
    source: str = "tropd"
    answer: str = ""


@dataclass(frozen=True)
class Order:
    batch: int  # prompts of a step, verl's `data.train_batch_size`
    steps: int  # of the whole training
    max_response_length: int  # tokens of prefix and continuation, verl's `data.max_response_length`
    min_tail: int = 1  # tokens that are left to the student
    seed: int = 42  # of the order

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "max_response_length", "min_tail"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def numbers(self, prompts: int) -> Iterator[int]:
        """Which prompt each row is of: every prompt once in some order, then all of them in another.

        >>> sorted(Order(batch=2, steps=2, max_response_length=8).numbers(4))
        [0, 1, 2, 3]
        """
        left, turn = self.batch * self.steps, 0
        while left > 0:
            order = list(range(prompts))
            random.Random(f"{self.seed}/{turn}").shuffle(order)
            yield from order[:left]
            left, turn = left - prompts, turn + 1


def steps_of(prompts: int, batch: int, epochs: float) -> int:
    """Steps of `epochs` passes over the prompts; an incomplete step is not counted.

    >>> steps_of(100, 32, 1), steps_of(100, 32, 2)
    (3, 6)
    """
    return int(prompts * epochs) // batch


def training_rows(prompts: Sequence[Prompt], method: Method, order: Order) -> Iterator[dict[str, Any]]:
    """verl's rows, in the order of training.

    >>> from tropd.objective import get_method
    >>> prompts = [Prompt([{"role": "user", "content": "2+2"}], response_ids=[5, 6, 7, 8, 9])]
    >>> order = Order(batch=1, steps=2, max_response_length=4)
    >>> [row["extra_info"]["tropd_prefix_ids"] for row in training_rows(prompts, get_method("tropd"), order)]
    [[5, 6, 7], [5, 6]]

    Raises:
        ValueError: there is no prompt.
    """
    if not prompts:
        raise ValueError("there are no prompts to write.")
    for place, number in enumerate(order.numbers(len(prompts))):
        step = place // order.batch
        prompt = prompts[number]
        extra = {"index": number, STEP: step + 1, PREFIX: prefix(prompt.response_ids, method, order, step)}
        yield verl_row(prompt, extra)


def validation_rows(prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """verl's rows for `data.val_files`: without prefixes."""
    return (verl_row(prompt, {"index": number, STEP: None, PREFIX: []}) for number, prompt in enumerate(prompts))


def verl_row(prompt: Prompt, extra: dict[str, Any]) -> dict[str, Any]:
    """The columns that verl's data set and reward manager read."""
    return {
        "data_source": prompt.source,
        "prompt": prompt.messages,
        "reward_model": {"style": "rule", "ground_truth": prompt.answer},
        "extra_info": extra,
    }


def prefix(response_ids: Sequence[int], method: Method, order: Order, step: int) -> list[int]:
    """The start of a teacher's response from which a rollout of `step` (from 0) continues."""
    if not method.guided or not response_ids:
        return []
    length = prefix_length(
        method.guidance_length,
        guidance_fraction(method.guidance_schedule, step, order.steps),
        response_length=len(response_ids),
        max_length=order.max_response_length,
        min_tail=order.min_tail,
    )
    return list(response_ids[:length])
