"""Which tokens to believe: the trust region and its gates.

r = log π_T(x) − log π_old(x) of a student-sampled token is the *log ratio*; the region machinery reads it detached.
A gate turns it into a *trust weight* in [0, 1]; what is left, 1 − weight, is the outlier weight. Hard regions have
weights 0 and 1. Any shape; entries line up with tokens.
"""

import math

import torch
from torch import Tensor

from .methods import GATES


def trust_probability(log_ratio: Tensor) -> Tensor:
    """P_trust = min(π_T/π_S, 1), the acceptance test of speculative decoding (TrOPD, trust region).

    Its mean over student samples is 1 − TV(π_S, π_T).
    """
    return torch.exp(log_ratio.detach().clamp_max(0.0))


def trust_weight(
    gate: str,
    log_ratio: Tensor,
    *,
    uniforms: Tensor | None = None,
    tau: float | None = None,
    selected: Tensor | None = None,
) -> Tensor:
    """The weight in [0, 1] with which each token is trusted, in the dtype of `log_ratio`, detached.

    Args:
        gate: `bernoulli`, M = 1[u < P_trust], the paper's; `expected`, P_trust itself (the Bernoulli gate averaged
            out); `hard`, 1[r > τ]; `floor`, 1[r ≥ τ] (REOPOLD, phase I); `student_entropy` and `teacher_entropy`,
            the tokens in `selected`; `open` and `closed`, every token or none.
        log_ratio: r, any shape.
        uniforms: draws in [0, 1) for `bernoulli`, addressed by (seed, step, row, position).
        tau: threshold in nats for `hard` and `floor`.
        selected: trusted tokens for the entropy gates, boolean.
    """
    if gate == "open":
        return torch.ones_like(log_ratio)
    if gate == "closed":
        return torch.zeros_like(log_ratio)
    if gate == "bernoulli":
        return (_needed(uniforms, gate, "uniforms") < trust_probability(log_ratio)).to(log_ratio.dtype)
    if gate == "expected":
        return trust_probability(log_ratio)
    if gate == "hard":
        return (log_ratio > _needed(tau, gate, "tau")).to(log_ratio.dtype)
    if gate == "floor":
        return (log_ratio >= _needed(tau, gate, "tau")).to(log_ratio.dtype)
    if gate in ("student_entropy", "teacher_entropy"):
        return _needed(selected, gate, "selected").to(log_ratio.dtype)
    raise ValueError(f"gate is {gate!r}; choose one of {', '.join(GATES)}")


def top_share_threshold(values: Tensor, share: float) -> float:
    """The value that the top `share` of `values` reaches: the ⌈share·n⌉-th largest (+inf for no values).

    Used for "the 20% of tokens with the highest entropy" (Entropy OPD, REOPOLD phase II) over the *global* batch;
    tokens that tie with the threshold are all in.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1]")
    if values.numel() == 0:
        return math.inf
    # The epsilon keeps 0.2·5 = 1.0000000000000002 from asking for a second token.
    count = max(1, math.ceil(share * values.numel() - 1e-9))
    return values.flatten().topk(count).values[-1].item()


def _needed(value, gate: str, name: str):
    if value is None:
        raise ValueError(f"gate {gate!r} needs `{name}`, which is None")
    return value
