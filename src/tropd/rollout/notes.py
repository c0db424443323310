"""What a sampler knew of the tokens it drew, kept by row and position, so that no second pass has to find it out."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Noted(NamedTuple):
    """What is known of each token of one response; NaN where nothing is.

    Attributes:
        logps: log π of the token.
        entropies: of the softmax that it was drawn from, in nats.
    """

    logps: list[float]
    entropies: list[float]


class SamplerNotes:
    """Log-probability and entropy of drawn tokens, over all turns of one batch's rollouts.

    >>> notes = SamplerNotes(temperature=1.0)
    >>> notes.add([(4, 2)], torch.tensor([[-0.5, -1.0]]), torch.tensor([[0.7, 0.8]]))
    >>> [round(value, 1) for value in notes.of(row=4, length=4)[0]]
    [nan, nan, -0.5, -1.0]

    Args:
        temperature: of the softmax that the numbers are of.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature
        self._parts: dict[int, list[tuple[int, list[float], list[float]]]] = defaultdict(list)

    def add(self, places: Sequence[tuple[int, int]], logps_BL: Tensor, entropies_BL: Tensor) -> None:
        """Note what was drawn from each (row, position) on; NaN is nothing."""
        lines = zip(places, logps_BL.tolist(), entropies_BL.tolist(), strict=True)
        for (row, position), logps, entropies in lines:
            self._parts[row].append((position, logps, entropies))

    def of(self, row: int, length: int) -> Noted | None:
        """The first `length` tokens of a row's response; `None` for a row of which nothing was noted."""
        if row not in self._parts:
            return None
        logps, entropies = [math.nan] * length, [math.nan] * length
        for position, *columns in self._parts[row]:
            for line, values in zip((logps, entropies), columns, strict=True):
                known = values[: max(0, length - position)]
                line[position : position + len(known)] = known
        return Noted(logps, entropies)
