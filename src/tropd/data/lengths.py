"""Checks prompts against a token budget."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..visible import shorten
from .prompts import PromptData
from .refusals import BadRow, refusal

Tokenize = Callable[[list[Any]], Sequence[Sequence[int]]]
"""Prompts, as text or messages, to the token ids of each."""


def check_lengths(
    data: PromptData,
    tokenize: Tokenize | Sequence[int | None],
    budget: int,
    overlong: str = "refuse",
    *,
    what: str = "prompt",
) -> PromptData:
    """Check every prompt against a budget.

    The student reads `prompt`; the teacher reads `teacher_prompt` where there is one, through its own chat template
    perhaps. Each may be held against the context of its own model; `what` then names it in the sentences.

    Args:
        data: loaded prompts.
        tokenize: prompts to token ids as the model will see them, chat template included. Called once, with the values
            of the column `what` but for `None`. Or the token counts themselves, one for each row; `None` for a row that
            is not to be checked.
        budget: tokens that a prompt may have.
        overlong: `refuse` longer prompts, or `drop` them.
        what: what is counted, for the sentences, and the column that a function in `tokenize` is given.

    Returns:
        The data; without the longer prompts under `drop`, where `dropped` counts them and a note names some.

    Raises:
        ValueError: longer prompts under `refuse`; prompts without tokens; nothing left; a setting out of range.
    """
    if overlong not in ("refuse", "drop"):
        raise ValueError(f"overlong_prompts is {overlong!r}; choose refuse or drop.")
    if budget < 1:
        raise ValueError(f"the budget for {what}s is {budget} tokens; a prompt has at least one token. Raise it.")
    lengths = _counted(data, tokenize, what) if callable(tokenize) else list(tokenize)
    if len(lengths) != len(data):
        raise ValueError(f"{len(lengths)} token counts are given for {len(data)} rows; give one for each.")
    _refuse_empty(data, lengths, what)
    bad = [
        (row, BadRow(data.places[row], f"{what} has {length:,} tokens, but only {budget:,} fit"))
        for row, length in enumerate(lengths)
        if length is not None and length > budget
    ]
    if not bad:
        return data
    if overlong == "refuse":
        raise refusal(
            [fault for _, fault in bad],
            len(data),
            "Shorten them, raise the budget, or set overlong_prompts: drop to exclude them.",
        )
    return _without(data, [row for row, _ in bad], budget, what)


def _counted(data: PromptData, tokenize: Tokenize, what: str) -> list[int | None]:
    """Tokens in each row's value of the column, `None` where it has none."""
    if what not in data.dataset.column_names:
        raise ValueError(
            f"{what} is not a column of {data.source} (it has: {', '.join(data.dataset.column_names)}). Give the token "
            "counts themselves, or name the column that is to be tokenised."
        )
    values = data.dataset[what][:]
    given = [value for value in values if value is not None]
    counts = [len(ids) for ids in tokenize(given)]
    if len(counts) != len(given):
        raise ValueError(f"tokenize returned {len(counts)} lists for {len(given)} prompts; return one for each.")
    rest = iter(counts)
    return [None if value is None else next(rest) for value in values]


def _refuse_empty(data: PromptData, lengths: Sequence[int | None], what: str) -> None:
    empty = [row for row, length in enumerate(lengths) if length == 0]
    if empty:
        values = data.dataset[what if what in data.dataset.column_names else "prompt"]
        bad = [BadRow(data.places[row], f"{what} has no tokens ({shorten(values[row])})") for row in empty]
        raise refusal(bad, len(data), "Nothing would predict the first response token. Correct or remove these rows.")


def _without(data: PromptData, left_out: Sequence[int], budget: int, what: str) -> PromptData:
    long = set(left_out)
    kept = [row for row in range(len(data)) if row not in long]
    having = f"more than {budget:,} tokens" if what == "prompt" else f"a {what} of more than {budget:,} tokens"
    if not kept:
        raise ValueError(f"all {len(data):,} prompts have {having}, so none is left. Raise the budget.")
    places = ", ".join(data.places[row] for row in left_out[:3])
    note = (
        f"{len(left_out):,} of {len(data):,} prompts are excluded because they have {having}: "
        f"{places}{' …' if len(left_out) > 3 else ''}"
    )
    return replace(
        data,
        dataset=data.dataset.select(kept),
        places=tuple(data.places[row] for row in kept),
        dropped=data.dropped + len(left_out),
        notes=(*data.notes, note),
    )
