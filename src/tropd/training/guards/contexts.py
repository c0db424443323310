"""Prompts that a model cannot read: without a token, or with a response beyond the positions that it was made for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ...messages import TOOLS, without_nulls

COLUMNS = ("prompt", "teacher_prompt", TOOLS)
"""What contexts are made of."""
TEMPLATE = 2048
"""Tokens that a chat template puts around a prompt, at most; more are met when their batch is."""


@dataclass(frozen=True)
class Reader:
    """Who reads contexts, and how far.

    Attributes:
        who: `the student` or a teacher, as a sentence begins.
        positions: that it was made for; `None` where nobody says.
        steady: tokens up to which its rotary embedding does not depend on the batch; `None` where it never does.
        way_out: what else helps beyond those.
    """

    who: str
    positions: int | None
    steady: int | None = None
    way_out: str = ""

    def check(self, contexts: Sequence[Sequence[int]], budget: int) -> None:
        """Refuse what the command line refuses before a run; a model with rotary positions would read on, and wrongly.

        Args:
            contexts: token ids of each prompt, as this model sees it.
            budget: `max_completion_length`.

        Raises:
            ValueError: with the lengths, and what to do.
        """
        if not all(contexts):
            raise ValueError(
                f"{self.who} is given a prompt without a token, and nothing would predict the first token of its "
                "response. Leave empty prompts out of the data."
            )
        longest = max(map(len, contexts), default=0)
        if self.positions is not None and longest + budget > self.positions:
            why = (
                f"it was made for {self.positions} positions (max_position_embeddings) and cannot read beyond them. "
                + _what_fits(self.positions - longest)
            )
        elif self.steady is not None and longest + budget > self.steady:
            why = (
                f"beyond {self.steady} its rotary embedding (rope_type) depends on the longest row of a batch, so that "
                f"rollouts and scores would be of different models. {_what_fits(self.steady - longest)}{self.way_out}"
            )
        else:
            return
        raise ValueError(
            f"a prompt has {longest} tokens for {self.who}, and max_completion_length is {budget}: "
            f"{longest + budget} together, but {why}"
        )


def _what_fits(room: int) -> str:
    fits = f"Set max_completion_length to at most {room}, or leave" if room > 0 else "Leave"
    return f"{fits} the longest prompts out of the data."


def doubtful_rows(data: Any, room: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of data sets that may have too many tokens, or none, a thousand at a time.

    A token has at least a byte, so that most rows need no tokenizer. Streams, and data sets that compute their rows,
    are not read here: their rows are met with their batch.

    Args:
        data: a data set, several by name or in a sequence, or `None`.
        room: tokens that a prompt may have.
    """
    if isinstance(data, Mapping | tuple) and not isinstance(data, Dataset):
        for part in data.values() if isinstance(data, Mapping) else data:
            yield from doubtful_rows(part, room)
    elif isinstance(data, Dataset) and data.format["type"] is None:
        for batch in data.iter(1000):
            columns = [map(without_nulls, values) if name in COLUMNS else values for name, values in batch.items()]
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]
            doubtful = [row for row in rows if not row.get("prompt") or _bytes(row) + TEMPLATE > room]
            if doubtful:
                yield doubtful


def _bytes(row: dict[str, Any]) -> int:
    """Of the longer of the two prompts, and the tools."""
    sizes = [len(json.dumps(row.get(name), ensure_ascii=False, default=str).encode()) for name in COLUMNS]
    return max(sizes[:2]) + sizes[2]
