"""Which row a context belongs to, over the turns of a rollout, and who wrote what in them.

The host's tool loop asks the sampler again for some rows of a batch, without their numbers.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from .engine.noise import Place


class TextIndex:
    """Rows by all that they have read and written, so that a context finds its row in one pass over its own tokens.

    Each row stands under the hash of its text, and a context has the hashes of all its beginnings. However many rows
    there are, a context is compared with the one that it finds, and with no other.
    """

    def __init__(self) -> None:
        self._texts: dict[int, list[int]] = {}
        self._hashes: dict[int, int] = {}  # of texts as `find` last knew them

    def put(self, row: int, text: list[int]) -> None:
        """Note a row's text, in the place of its last one."""
        self._texts[row] = text
        self._hashes.pop(row, None)

    def begins(self, row: int, context: Sequence[int]) -> bool:
        """Does a context begin with what a row has read and written?"""
        text = self._texts[row]
        return list(context[: len(text)]) == text

    def find(self, contexts: Sequence[Sequence[int]]) -> list[int] | None:
        """For each context another row, with the longest text that it begins with, and the first among equals.

        Returns:
            Rows; `None` if some context begins with the text of none that is left.

        >>> index = TextIndex()
        >>> for row, text in enumerate([[1, 5], [1, 5], [1, 5, 6]]):
        ...     index.put(row, text)
        >>> index.find([[1, 5, 9], [1, 5, 6, 9], [1, 5, 8]]), index.find([[1, 9]])
        ([0, 2, 1], None)
        """
        rows: dict[int, list[int]] = defaultdict(list)
        for row in sorted(self._texts):
            if row not in self._hashes:
                *_, self._hashes[row] = _hashes_of_beginnings(self._texts[row])
            rows[self._hashes[row]].append(row)
        found: list[int] = []
        for context in contexts:
            alike = (rows[key] for key in reversed([*_hashes_of_beginnings(context)]) if rows.get(key))
            mine = next((few for few in alike if self.begins(few[0], context)), None)
            if mine is None:
                return None
            found.append(mine.pop(0))
        return found


def _hashes_of_beginnings(tokens: Iterable[int]) -> Iterator[int]:
    """Of no token, of the first, of the first two, and so on to all of them."""
    return accumulate(tokens, lambda before, token: hash((before, token)), initial=0)


@dataclass
class Turns:
    """Which row and position each sequence goes on at, over all turns of one batch's rollouts.

    The first turn has every row, in order. A tool loop then asks for the rows whose last message is a new reply of a
    tool: `follow` is told of the messages, and rows are known exactly, whatever their texts. A user's own loop tells no
    messages: there each row is known by its own text, prompt and response so far, with which its new context begins,
    and rows that have written the same text for the same prompt are told apart by their order.
    """

    first_row: int  # number of the first of them in the whole step
    # the rows of the turn under way, counted from 0 in this batch; `None` where they are not known
    asked: list[int] | None = None
    # for each row the stretches of its response, as slices, that its teacher wrote
    guided: list[list[slice]] = field(default_factory=list)
    # likewise those of either model, turn by turn; between them stands what tools said
    written: list[list[slice]] = field(default_factory=list)
    messages: Sequence[list[Any]] | None = None
    _prompt_lengths: list[int] = field(default_factory=list)
    _texts: TextIndex = field(default_factory=TextIndex)
    _seen: list[int] = field(default_factory=list)

    def follow(self, messages: Sequence[list[Any]]) -> None:
        """Know rows by their messages from now on.

        The loop appends to these lists, which each row has behind its prompt.
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
        if not self._prompt_lengths:
            self._prompt_lengths = [len(context) for context in contexts]
            self.guided, self.written = [[] for _ in contexts], [[] for _ in contexts]
            self.asked = list(range(len(contexts)))
        else:
            self.asked = self._texts.find(contexts) if self.messages is None else self._rows_with_replies(contexts)
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

        So many of the first tokens of each as `by_teacher` says are the teacher's; none by default.
        """
        if self.asked is None:
            return
        for row, context, tokens in zip(self.asked, contexts, written, strict=True):
            self._texts.put(row, [*context, *tokens])
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
            assert self._texts.begins(row, context), "a context that does not continue its row"
        return rows
