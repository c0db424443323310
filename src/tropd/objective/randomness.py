"""Randomness with an address: a draw depends on where it is used and on nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GATE_STREAM = 0
"""Stream number of the trust gate's draws; a new use of addressed randomness takes a new number."""


def addressed_uniforms(seed: int, step: int, rows: Sequence[int], length: int, stream: int = GATE_STREAM) -> Tensor:
    """Uniforms in [0, 1), float64 [len(rows), length], each a function of (seed, step, row, position) alone.

    A counter-based generator (Philox) is keyed by (seed, step) and started at (row, stream), so the draws of a row
    do not depend on its batch, rank, micro-batch or padded length.

    Args:
        seed: of the run.
        step: of the batch.
        rows: numbers of the rows, over the whole run's data.
        length: positions of each row.
        stream: what the draws are for.

    >>> long, short = addressed_uniforms(0, 7, [3, 5], 9), addressed_uniforms(0, 7, [5], 4)
    >>> bool((long[1, :4] == short[0]).all())
    True
    """
    key = np.array([seed, step], dtype=np.uint64)
    counters = [np.array([0, row, stream, 0], dtype=np.uint64) for row in rows]
    draws = [np.random.Generator(np.random.Philox(key=key, counter=start)).random(length) for start in counters]
    return torch.from_numpy(np.stack(draws)) if draws else torch.empty(0, length, dtype=torch.float64)


@dataclass(frozen=True)
class DrawAddress:
    """Where the draws of several sequences begin, for an engine that draws by itself.

    Attributes:
        seed: of the run.
        step: of the batch.
        stream: what the draws are for.
        rows: one number for each sequence.
    """

    seed: int
    step: int
    stream: int
    rows: tuple[int, ...]

    def seeds(self) -> list[int]:
        """53 bits for each sequence, for an engine that spreads a seed over the tokens itself."""
        draws = addressed_uniforms(self.seed, self.step, self.rows, 1, self.stream)[:, 0]
        return [int(value) for value in (draws * 2**53).tolist()]
