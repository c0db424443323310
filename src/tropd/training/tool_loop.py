"""The host's tool loop, as we need it: ranks in step, episodes that were cut, and replies that are text.

TRL runs the tools; what it says of them is the messages that it appends to each row's completion while it goes on.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .distributed.sharding import uses_zero3

PLACE = "<|tropd text {}|>"
"""Stands in a tool's reply, while a chat template renders it, for the text of a special token."""


# ---------------------------------------------------------------------- ranks


def writes_together(trainer: Any) -> bool:
    """Does each turn that the student writes need all processes, as they hold its weights together?"""
    several = trainer.accelerator.num_processes > 1
    return bool(several and not trainer.use_vllm and (trainer.is_fsdp_enabled or uses_zero3(trainer)))


class RanksInStep:
    """Keeps processes that hold the student's weights together in one turn, however many turns each has to write.

    Each says before a turn whether it has one. One without writes behind a context of one token instead, and throws
    that away, until no process has any.

    Args:
        trainer: a built `TrOPDTrainer`.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.is_needed = trainer, writes_together(trainer)

    def begin_turn(self) -> None:
        """Say that this process writes a turn."""
        if self.is_needed:
            self._any_has_turn(True)

    def end(self, write: Callable[[list[list[int]]], Any]) -> None:
        """Go on with turns that nobody reads until all processes have come to their end.

        Args:
            write: the host's sampler, behind contexts.
        """
        while self.is_needed and self._any_has_turn(False):
            self.write_idly(write)

    def write_idly(self, write: Callable[[list[list[int]]], Any]) -> None:
        """Take part in a turn without a row of one's own."""
        write([[self.trainer._tokenizer.eos_token_id]])

    def _any_has_turn(self, mine: bool) -> bool:
        return bool(self.trainer.ranks.sum(torch.tensor([float(mine)])).item())


# ---------------------------------------------------------------------- replies


class PlainReplies:
    """Lets the text of a special token in a tool's reply be text, so that no reply can end a turn or begin another.

    A chat template renders the reply with a mark in its place, which a twin of the tokenizer reads as one token, and
    that token becomes the ids of the text.

    Args:
        tokenizer: the student's.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        self._twins: dict[int, Any] = {}

    def tokenize(self, trainer: Any, replies: Sequence[dict[str, Any]], host: Callable[[Any], list[int]]) -> list[int]:
        """What stands between the call and the next turn, as ids.

        Args:
            trainer: whose `processing_class` the host renders with.
            replies: the tools' messages of one turn.
            host: from messages to ids.
        """
        texts = [text for reply in replies for text in self._special.findall(_joined(reply["content"]))]
        if not texts:
            return host(replies)
        marks = iter(PLACE.format(number) for number in range(len(texts)))
        marked = [reply | {"content": self._mark(reply["content"], marks)} for reply in replies]
        with self._reading_marks(trainer, len(texts)) as numbers:
            ids = host(marked)
        return [
            each for token in ids for each in (self._as_text(texts[numbers[token]]) if token in numbers else [token])
        ]

    def _mark(self, content: Any, marks: Iterator[str]) -> Any:
        if isinstance(content, str):
            return self._special.sub(lambda _: next(marks), content)
        return [
            part | {"text": self._mark(part["text"], marks)} if isinstance(part.get("text"), str) else part
            for part in content
        ]

    def _as_text(self, special: str) -> list[int]:
        return list(self._tokenizer(special, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    @contextmanager
    def _reading_marks(self, trainer: Any, count: int) -> Iterator[dict[int, int]]:
        """Inside, the host's tokenizer reads marks; yields their ids, with the number of each."""
        marks = [PLACE.format(number) for number in range(count)]
        if count not in self._twins:
            self._twins = {count: copy.deepcopy(self._tokenizer)}
            self._twins[count].add_tokens(marks, special_tokens=True)
        own, trainer.processing_class = trainer.processing_class, self._twins[count]
        try:
            yield {id_: number for number, id_ in enumerate(self._twins[count].convert_tokens_to_ids(marks))}
        finally:
            trainer.processing_class = own


def _joined(content: Any) -> str:
    """The text of a message, block by block; of pictures there is none."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
