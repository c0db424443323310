"""From per-token losses to a scalar, dividing by the counts of the whole optimiser step.

A micro-batch on one rank returns Σ (its tokens) / (the count over all micro-batches and ranks), so that the sum over
micro-batches and ranks is the loss of the undivided batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .loss import TokenLosses, TokenSignals


@dataclass(frozen=True)
class RegionCounts:
    """Global number of tokens in each region; trust and outlier are sums of weights and need not be whole.

    >>> counts = RegionCounts(trust=6.0, outlier=2.0, guidance=4.0)
    >>> counts.student, counts.total
    (8.0, 12.0)
    """

    trust: float
    outlier: float
    guidance: float

    @property
    def student(self) -> float:
        return self.trust + self.outlier

    @property
    def total(self) -> float:
        return self.student + self.guidance


def region_counts(signals: TokenSignals) -> Tensor:
    """Local counts (trust, outlier, guidance) as one float64 tensor [3], ready to be summed over ranks.

    >>> one, none = torch.ones(2), torch.zeros(2)
    >>> region_counts(TokenSignals(none, none, trust_weight=one, outlier_weight=none, guidance_mask=none)).tolist()
    [2.0, 0.0, 0.0]
    """
    regions = (signals.trust_weight, signals.outlier_weight, signals.guidance_mask)
    return torch.stack([region.sum(dtype=torch.float64) for region in regions])


def denominators(counts: RegionCounts, reduction: str = "shared") -> dict[str, float]:
    """What each part of the loss is divided by; see `reduced_parts`.

    >>> denominators(RegionCounts(trust=6.0, outlier=2.0, guidance=4.0), "per_region")
    {'trust': 6.0, 'outlier': 2.0, 'guidance': 4.0, 'reward': 8.0}

    Raises:
        ValueError: `reduction` is unknown.
    """
    by_reduction = {
        "shared": (counts.total, counts.total, counts.total, counts.total),
        "per_turn": (counts.total, counts.total, counts.total, counts.total),
        "per_region": (counts.trust, counts.outlier, counts.guidance, counts.student),
        "selected": (counts.trust, counts.trust, counts.trust, counts.trust),
    }
    if reduction not in by_reduction:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(by_reduction)}")
    return dict(zip(("trust", "outlier", "guidance", "reward"), by_reduction[reduction], strict=True))


def reduced_parts(losses: TokenLosses, counts: RegionCounts, reduction: str = "shared") -> dict[str, Tensor]:
    """Each part of the scalar loss: its sum over these tokens, divided by its global count.

    `shared`: one mean over all student and prefix tokens. `per_region`: each region's own mean, so that long prefixes
    do not dilute the on-policy terms. `per_turn`: `shared`, of losses weighed by
    `turns.turn_mean_weights`: in each episode the mean over its turns of their means. `selected`: over trusted tokens
    alone (the Σ M of REOPOLD, arXiv 2603.11137). An empty region gives zero.

    >>> losses, counts = TokenLosses(*torch.tensor([[3.0], [1.0], [2.0], [0.0]])), RegionCounts(6.0, 2.0, 4.0)
    >>> {part: value.item() for part, value in reduced_parts(losses, counts, "per_region").items()}
    {'trust': 0.5, 'outlier': 0.5, 'guidance': 0.5, 'reward': 0.0}

    Raises:
        ValueError: `reduction` is unknown.
    """
    sums = ((name, getattr(losses, name).sum(), count) for name, count in denominators(counts, reduction).items())
    return {name: total / count if count > 0 else total * 0.0 for name, total, count in sums}


def reduce_losses(losses: TokenLosses, counts: RegionCounts, reduction: str = "shared") -> Tensor:
    """The scalar loss of these tokens: the sum of `reduced_parts`.

    >>> losses, counts = TokenLosses(*torch.tensor([[3.0], [1.0], [2.0], [0.0]])), RegionCounts(6.0, 2.0, 4.0)
    >>> reduce_losses(losses, counts).item()
    0.5

    Raises:
        ValueError: `reduction` is unknown.
    """
    return torch.stack(list(reduced_parts(losses, counts, reduction).values())).sum()
