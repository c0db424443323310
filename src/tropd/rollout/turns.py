"""Which row a context belongs to, over the turns of a rollout, and who wrote what in them.

The host's tool loop asks the sampler again for some rows of a batch, without their numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine.noise import Place


@dataclass
class Turns:
    """Which row and position each sequence goes on at, over all turns of one batch's rollouts.

    The first turn has every row, in order. A tool loop then asks for the rows whose last message is a new reply of a
    tool: `follow` is told of the messages, and rows are known exactly, whatever their texts. A user's own loop tells no
    messages: there each row is known by its own text, prompt and response so far, with which its new context begins,
    and rows that have written the same text for the same prompt are told apart by their order.

    Attributes:
        first_row: number of the first of them in the whole step.
        asked: the rows of the turn under way, counted from 0 in this batch; `None` where they are not known.
        guided: for each row the stretches of its response, as slices, that its teacher wrote.
        written: likewise those of either model, turn by turn; between them stands what tools said.
    """

    first_row: int
    asked: list[int] | None = None
    guided: list[list[slice]] = field(default_factory=list)
    written: list[list[slice]] = field(default_factory=list)
    messages: Sequence[list[Any]] | None = None
    _prompt_lengths: list[int] = field(default_factory=list)
    _texts: list[list[int]] = field(default_factory=list)
    _seen: list[int] = field(default_factory=list)

    def follow(self, messages: Sequence[list[Any]]) -> None:
        """Know rows by their messages from now on.

        Args:
            messages: each row's, behind its prompt; the loop appends to these lists.
        """
        self.messages, self._seen = messages, [len(row) for row in messages]

    def places(self, contexts: Sequence[list[int]]) -> list[Place] | None:
        """Where each context goes on; `None` if one of them continues no row of this batch.

        >>> turns = Turns(first_row=4)
        >>> turns.places([[1, 2], [1, 2]])
        [(4, 0), (5, 0)]
        >>> turns.record([[1, 2], [1, 2]], [[7], [8]])
        >>> turns.places([[1, 2, 8, 9]])
        [(5, 2)]
        """
        if not self._texts:
            self._texts = [list(context) for context in contexts]
            self._prompt_lengths = [len(context) for context in contexts]
            self.guided, self.written = [[] for _ in contexts], [[] for _ in contexts]
            self.asked = list(range(len(contexts)))
        else:
            self.asked = self._rows_of(contexts) if self.messages is None else self._rows_with_replies(contexts)
        if self.asked is None:
            return None
        return [
            (self.first_row + row, len(context) - self._prompt_lengths[row])
            for row, context in zip(self.asked, contexts, strict=True)
        ]

    def record(
        self, contexts: Sequence[list[int]], written: Sequence[Sequence[int]], by_teacher: Sequence[int] = ()
    ) -> None:
        """Note what was written behind the contexts that `places` was last asked for and knew.

        Args:
            contexts: of this turn.
            written: behind each.
            by_teacher: how many of the first tokens of each are the teacher's; none by default.
        """
        if self.asked is None:
            return
        for row, context, tokens in zip(self.asked, contexts, written, strict=True):
            self._texts[row] = [*context, *tokens]
            start = len(context) - self._prompt_lengths[row]
            self.written[row].append(slice(start, start + len(tokens)))
        for row, context, length in zip(self.asked, contexts, by_teacher, strict=False):
            start = len(context) - self._prompt_lengths[row]
            self.guided[row] += [slice(start, start + length)] if length else []

    def _rows_with_replies(self, contexts: Sequence[list[int]]) -> list[int]:
        """The rows that a tool has answered since the last turn: the loop takes back the replies it has no room for."""
        assert self.messages is not None
        rows = [
            row
            for row, (messages, seen) in enumerate(zip(self.messages, self._seen, strict=True))
            if len(messages) > seen and messages[-1]["role"] == "tool"
        ]
        self._seen = [len(messages) for messages in self.messages]
        for row, context in zip(rows, contexts, strict=True):
            assert context[: len(self._texts[row])] == self._texts[row], "a context that does not go on with its row"
        return rows

    def _rows_of(self, contexts: Sequence[list[int]]) -> list[int] | None:
        """For each context the free row with the longest text that it begins with, the first among equals."""
        free = dict(enumerate(self._texts))
        rows = []
        for context in contexts:
            fitting = [row for row, text in free.items() if list(context[: len(text)]) == text]
            if not fitting:
                return None
            rows.append(max(fitting, key=lambda row: len(free[row])))
            del free[rows[-1]]
        return rows
