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
    """Global number of tokens in each region; trust and outlier are sums of weights and need not be whole."""

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
    """Local counts (trust, outlier, guidance) as one float64 tensor [3], ready to be summed over ranks."""
    regions = (signals.trust_weight, signals.outlier_weight, signals.guidance_mask)
    return torch.stack([region.sum(dtype=torch.float64) for region in regions])


def denominators(counts: RegionCounts, reduction: str = "shared") -> dict[str, float]:
    """What each part of the loss is divided by; see `reduced_parts`."""
    by_reduction = {
        "shared": (counts.total, counts.total, counts.total, counts.total),
        "per_region": (counts.trust, counts.outlier, counts.guidance, counts.student),
        "selected": (counts.trust, counts.trust, counts.trust, counts.trust),
    }
    if reduction not in by_reduction:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(by_reduction)}")
    return dict(zip(("trust", "outlier", "guidance", "reward"), by_reduction[reduction], strict=True))


def reduced_parts(losses: TokenLosses, counts: RegionCounts, reduction: str = "shared") -> dict[str, Tensor]:
    """Each part of the scalar loss: its sum over these tokens, divided by its global count.

    `shared`: one mean over all student and prefix tokens. `per_region`: each region's own mean, so that long prefixes
    do not dilute the on-policy terms. `selected`: over trusted tokens alone (REOPOLD's Σ M). An empty region gives
    zero.
    """
    return {
        name: _divide(getattr(losses, name).sum(), count) for name, count in denominators(counts, reduction).items()
    }


def reduce_losses(losses: TokenLosses, counts: RegionCounts, reduction: str = "shared") -> Tensor:
    """The scalar loss of these tokens: the sum of `reduced_parts`."""
    return torch.stack(list(reduced_parts(losses, counts, reduction).values())).sum()


def _divide(total: Tensor, count: float) -> Tensor:
    return total / count if count > 0 else total * 0.0
