"""Prompts against a budget of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .prompts import PromptData
from .refusals import BadRow, refusal, shortened

Tokenize = Callable[[list[Any]], Sequence[Sequence[int]]]
"""Prompts, as text or messages, to the token ids of each."""


def check_lengths(data: PromptData, tokenize: Tokenize, budget: int, overlong: str = "refuse") -> PromptData:
    """Hold every prompt against a budget.

    Args:
        data: loaded prompts.
        tokenize: prompts to token ids as the student will see them, chat template included. Called once.
        budget: tokens that a prompt may have.
        overlong: `refuse` longer prompts, or `drop` them.

    Returns:
        The data; without the longer prompts under `drop`, where `dropped` counts them and a note names some.

    Raises:
        ValueError: longer prompts under `refuse`; prompts without tokens; nothing left; a setting out of range.
    """
    if overlong not in ("refuse", "drop"):
        raise ValueError(f"overlong_prompts is {overlong!r}; choose refuse or drop.")
    if budget < 1:
        raise ValueError(f"the budget for prompts is {budget} tokens; a prompt has at least one. Raise it.")
    lengths = [len(ids) for ids in tokenize(list(data.dataset["prompt"]))]
    if len(lengths) != len(data):
        raise ValueError(f"tokenize returned {len(lengths)} lists for {len(data)} prompts; return one for each.")
    _refuse_empty(data, lengths)
    long = [row for row, length in enumerate(lengths) if length > budget]
    if not long:
        return data
    bad = [BadRow(data.places[row], f"prompt has {lengths[row]:,} tokens, {budget:,} fit") for row in long]
    if overlong == "refuse":
        raise refusal(
            bad,
            len(data),
            "Shorten them, raise the budget, or set overlong_prompts: drop to leave them out.",
        )
    return _without(data, set(long), bad, budget)


def _refuse_empty(data: PromptData, lengths: Sequence[int]) -> None:
    empty = [row for row, length in enumerate(lengths) if not length]
    if empty:
        prompts = data.dataset["prompt"]
        bad = [BadRow(data.places[row], f"prompt has no tokens ({shortened(prompts[row])})") for row in empty]
        raise refusal(bad, len(data), "Nothing would predict the first response token: correct or remove these rows.")


def _without(data: PromptData, left_out: set[int], bad: Sequence[BadRow], budget: int) -> PromptData:
    kept = [row for row in range(len(data)) if row not in left_out]
    if not kept:
        raise ValueError(
            f"all {len(data):,} prompts have more than {budget:,} tokens, so that none is left. Raise the budget."
        )
    note = (
        f"{len(bad):,} of {len(data):,} prompts are left out, having more than {budget:,} tokens: "
        f"{', '.join(row.place for row in bad[:3])}{' …' if len(bad) > 3 else ''}"
    )
    return replace(
        data,
        dataset=data.dataset.select(kept),
        places=tuple(data.places[row] for row in kept),
        dropped=data.dropped + len(bad),
        notes=(*data.notes, note),
    )
