"""What a sampler knew of the tokens it drew, kept by row and position, so that no second pass has to find it out."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from torch import Tensor

from ...objective.endings import Endings


class Noted(NamedTuple):
    """What is known of each token of one response; NaN where nothing is.

    Attributes:
        logps: log π of the token.
        entropies: of the softmax that it was drawn from, in nats.
    """

    logps: list[float]
    entropies: list[float]


class _Part(NamedTuple):
    """What was drawn behind one context, in one turn."""

    context: list[int]
    position: int
    tokens: list[int]
    logps: list[float]
    entropies: list[float]


def unpad(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The kept token ids of each row."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


@dataclass
class SamplerNotes:
    """Log-probability and entropy of drawn tokens, over all turns of one batch's rollouts.

    They belong to the tokens, behind the context, that the sampler drew: what a host or a user's function has put in
    their place has no note.

    >>> notes = SamplerNotes(temperature=1.0)
    >>> notes.add([(4, 1)], [[5, 8]], torch.tensor([[6, 7]]), torch.tensor([[-0.5, -1.0]]), torch.tensor([[0.7, 0.8]]))
    >>> [round(value, 1) for value in notes.of(row=4, prompt=[5], response=[8, 6, 7]).logps]
    [nan, -0.5, -1.0]
    >>> [round(value, 1) for value in notes.of(row=4, prompt=[5], response=[8, 6, 9]).logps]
    [nan, -0.5, nan]

    Attributes:
        temperature: of the softmax that the numbers are of.
        endings: ids that are one action in it; see `objective.endings`.
    """

    temperature: float
    endings: Endings = ()
    _parts: dict[int, list[_Part]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self,
        places: Sequence[tuple[int, int]],
        contexts: Sequence[list[int]],
        tokens_BL: Tensor,
        logps_BL: Tensor,
        entropies_BL: Tensor,
    ) -> None:
        """Note what was drawn behind each context, at its (row, position) and on; NaN is nothing."""
        lines = zip(places, contexts, tokens_BL.tolist(), logps_BL.tolist(), entropies_BL.tolist(), strict=True)
        for (row, position), context, *columns in lines:
            self._parts[row].append(_Part(context, position, *columns))

    def of(self, row: int, prompt: list[int], response: list[int]) -> Noted | None:
        """The tokens of a row's response; `None` for a row of which nothing was noted."""
        if row not in self._parts:
            return None
        noted = Noted([math.nan] * len(response), [math.nan] * len(response))
        for part in self._parts[row]:
            if part.context != prompt + response[: part.position]:
                continue
            pairs = zip(response[part.position :], part.tokens, strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            place = slice(part.position, part.position + same)
            noted.logps[place], noted.entropies[place] = part.logps[:same], part.entropies[:same]
        return noted
