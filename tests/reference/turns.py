"""Turns of an episode: the mean over turns of their means, and the trust of a turn; over lists of lists of lists."""

import math
from collections.abc import Sequence

Episode = Sequence[Sequence[float | None]]
"""Turns of values; a value of None is a token that does not count."""


def per_turn_mean(losses: Sequence[Episode]) -> float:
    """Σ_e n_e · (mean over the turns of e of their means) / Σ_e n_e; a turn without a token that counts is none."""
    total, tokens = [], 0
    for episode in losses:
        turns = [[x for x in turn if x is not None] for turn in episode]
        means = [math.fsum(turn) / len(turn) for turn in turns if turn]
        if means:
            size = sum(map(len, turns))
            total.append(size * math.fsum(means) / len(means))
            tokens += size
    return math.fsum(total) / tokens if tokens else 0.0


def takeover_probabilities(accepted: Episode, fraction: float) -> list[float]:
    """α (1 − A_j) of each turn: how likely the teacher writes it."""
    return [fraction * (1.0 - trust) for trust in turn_trusts(accepted)]


def turn_trusts(accepted: Episode) -> list[float]:
    """A_j of each turn: the mean of all values before it, 1 where there are none."""
    trusts = []
    for number in range(len(accepted)):
        before = [x for turn in accepted[:number] for x in turn if x is not None]
        trusts.append(math.fsum(before) / len(before) if before else 1.0)
    return trusts
