"""What a tool says, as tokens: its special tokens are text, and what is too long is cut.

Training and evaluation render replies alike; the template is the host's.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..models.hidden_states import replaced

PLACE = "<|tropd text {}|>"
"""Stands in a tool's reply, while a chat template renders it, for the text of a special token."""

CUT = " [cut: {} more tokens]"
"""Stands behind what is left of a reply that was too long."""


class PlainReplies:
    """Lets the text of a special token in a tool's reply be text, so that no reply can end a turn or begin another.

    A chat template renders the reply with a mark in its place, which a twin of the tokenizer reads as one token, and
    that token becomes the ids of the text.

    A reply of more than `most` tokens is cut, and a mark in its place tells the models; the messages, which rewards and
    recordings read, keep all of it.
    """

    def __init__(self, tokenizer: Any, most: int | None = None):
        self._tokenizer, self.most = tokenizer, most
        self.count = self.num_cut = 0  # replies so far, and those of them that were cut
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        self._twins: dict[int, Any] = {}

    def tokenize(self, trainer: Any, replies: Sequence[dict[str, Any]], host: Callable[[Any], list[int]]) -> list[int]:
        """What stands between the call and the next turn, as ids.

        `host` makes ids of messages, with the trainer's `processing_class`.
        """
        replies = [self._cut(reply) for reply in replies]
        texts = [text for reply in replies for text in self._special.findall(_text_of(reply["content"]))]
        if not texts:
            return host(replies)
        marks = iter(PLACE.format(number) for number in range(len(texts)))
        marked = [reply | {"content": self._mark(reply["content"], marks)} for reply in replies]
        with self._reading_marks(trainer, len(texts)) as numbers:
            ids = host(marked)
        return [
            each for token in ids for each in (self._as_text(texts[numbers[token]]) if token in numbers else [token])
        ]

    def _cut(self, reply: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        left, content = self.most, reply["content"]
        if left is None:
            return reply
        parts = [content] if isinstance(content, str) else content
        found: list[Any] = []
        for part in parts:
            text = part if isinstance(part, str) else part.get("text")
            if not isinstance(text, str):
                found.append(part)
                continue
            text, left = self._beginning(text, left)
            found.append(text if isinstance(part, str) else part | {"text": text})
        if found == parts:
            return reply
        self.num_cut += 1
        return reply | {"content": found[0] if isinstance(content, str) else found}

    def _beginning(self, text: str, most: int) -> tuple[str, int]:
        """The first tokens of a text and a mark where there are more, and how many tokens are left for others."""
        read = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        size = len(read["input_ids"])
        if size <= most:
            return text, most - size
        kept = text[: read.token_to_chars(most - 1).end] if most else ""
        return kept + CUT.format(size - most), 0

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
        with replaced(trainer, "processing_class", self._twins[count]):
            yield {id_: number for number, id_ in enumerate(self._twins[count].convert_tokens_to_ids(marks))}


def _text_of(content: Any) -> str:
    """The text of a message, block by block; of pictures there is none."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
