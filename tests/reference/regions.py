"""Who is trusted: the trust region, its gates, and the selections by entropy."""

import math
from fractions import Fraction

from numpy.typing import ArrayLike

from .vocabulary import entropy, vector

GATES = ("bernoulli", "expected", "hard")


def trust_probability(log_ratio: float) -> float:
    """P_trust = min(ρ, 1), with log ρ = log π_T(x) − log π_S(x)."""
    return 1.0 if log_ratio >= 0 else math.exp(log_ratio)


def trust_weight(log_ratio: float, gate: str, *, uniform: float = math.nan, threshold: float = -2.0) -> float:
    """M of one sampled token. bernoulli: u < min(ρ, 1); expected: min(ρ, 1); hard: r > threshold."""
    if gate == "bernoulli":
        assert 0.0 <= uniform < 1.0, f"uniform is {uniform}; a Bernoulli gate needs u in [0, 1)"
        return 1.0 if uniform < trust_probability(log_ratio) else 0.0
    if gate == "expected":
        return trust_probability(log_ratio)
    assert gate == "hard", f"gate is {gate!r}; expected one of {GATES}"
    return 1.0 if log_ratio > threshold else 0.0


def gate_outcomes(log_ratio: float, gate: str, *, threshold: float = -2.0) -> list[tuple[float, float]]:
    """Every (probability, M) of one sampled token's gate."""
    if gate == "bernoulli":
        trusted = trust_probability(log_ratio)
        return [(trusted, 1.0), (1.0 - trusted, 0.0)]
    return [(1.0, trust_weight(log_ratio, gate, threshold=threshold))]


def highest_entropy_share(entropies: ArrayLike, share: float) -> list[bool]:
    """True for the batch's ⌈share · N⌉ tokens of highest entropy, and for those tied with the last."""
    values = vector(entropies)
    num_selected = math.ceil(Fraction(str(share)) * len(values))
    if num_selected == 0:
        return [False] * len(values)
    threshold = sorted(values, reverse=True)[num_selected - 1]
    return [bool(value >= threshold) for value in values]


def teacher_is_uncertain(teacher_logp: ArrayLike, threshold: float = 0.8) -> bool:
    """EOPD's 1[H(π_T) > τ], the entropy over the full vocabulary in nats."""
    return entropy(teacher_logp) > threshold


def reopold_floor(lam: float) -> float:
    """(log λ) / (1 − λ) in nats, negative for every λ in (0, 1)."""
    assert 0.0 < lam < 1.0
    return math.log(lam) / (1.0 - lam)
