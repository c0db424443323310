"""Of rollouts with tools: turns, calls that can be read, and trust turn by turn."""

from collections.abc import Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..training.records import Rollout
from .measurement import Episodes, PositionBucket

QUESTION = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]


def call_opener(trainer: Any) -> int | None:
    """The token that a call begins with, as the student's chat template renders one; `None` where it renders none."""
    called = {"type": "function", "function": {"name": trainer.tools[0].__name__, "arguments": {}}}
    with_call = [QUESTION[0], QUESTION[1] | {"tool_calls": [called]}]
    without, read = (
        trainer._tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=False,
            chat_template=trainer.chat_template,
            **trainer.chat_template_kwargs,
        )
        for messages in (QUESTION, with_call)
    )
    return next((token for token, other in zip_longest(read, without) if token != other), None)


def measure_episodes(
    rollouts: Sequence[Rollout], rollout: Tensor, position: Tensor, values: tuple[Tensor, Tensor], opener: int | None
) -> Episodes | None:
    """Where tools were there."""
    if not any(one.is_cut is not None for one in rollouts):
        return None
    opened = [[opener in [one.response[p] for p in turn] for turn in one.turns] for one in rollouts]
    # A turn that a tool has answered could be read, and so could a last one that is a call and was cut.
    read = [
        [
            has and (n < len(marks) - 1 or bool(one.is_cut) or bool(one.external and one.external[-1]))
            for n, has in enumerate(marks)
        ]
        for one, marks in zip(rollouts, opened, strict=True)
    ]
    calls, parsed = sum(map(sum, opened)), sum(map(sum, read))
    numbers = [{place: number for number, turn in enumerate(one.turns, 1) for place in turn} for one in rollouts]
    turn = torch.tensor([numbers[r][p] for r, p in zip(rollout.tolist(), position.tolist(), strict=True)])
    return Episodes(
        mean_turns=fmean(len(one.turns) for one in rollouts),
        cut_share=fmean(bool(one.is_cut) for one in rollouts),
        num_calls=calls,
        parsed_share=parsed / calls if calls else None,
        turns=tuple(_bucket(number, turn == number, values) for number in sorted(set(turn.tolist()))),
    )


def _bucket(number: int, inside: Tensor, values: tuple[Tensor, Tensor]) -> PositionBucket:
    trust, log_ratio = (value[inside].mean().item() for value in values)
    return PositionBucket(number, number + 1, int(inside.sum()), trust, -log_ratio)
