"""From token losses to one number, over ragged lists of sequences."""

import math
from collections.abc import Sequence

Ragged = Sequence[Sequence[float]]


def _flat(ragged: Sequence[Sequence[object]]) -> list:
    return [entry for sequence in ragged for entry in sequence]


def shared_mean(losses: Ragged, regions: Sequence[Sequence[str | None]]) -> float:
    """Σ token / Σ (on + prefix): one denominator for all. A region of None is a token that does not count."""
    kept = [x for x, region in zip(_flat(losses), _flat(regions), strict=True) if region is not None]
    return math.fsum(kept) / len(kept) if kept else 0.0


def per_region_mean(losses: Ragged, regions: Sequence[Sequence[str | None]]) -> float:
    """The sum of the means of each region that is not empty."""
    tokens = list(zip(_flat(losses), _flat(regions), strict=True))
    total = 0.0
    for name in sorted({region for _, region in tokens if region is not None}):
        members = [loss for loss, region in tokens if region == name]
        total += math.fsum(members) / len(members)
    return total


def selected_mean(losses: Ragged, selected: Sequence[Sequence[bool]]) -> float:
    """Σ M · token / Σ M."""
    kept = [loss for loss, chosen in zip(_flat(losses), _flat(selected), strict=True) if chosen]
    return math.fsum(kept) / len(kept) if kept else 0.0
