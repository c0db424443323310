"""Divergences and estimators between a student and a teacher, per token.

*Reverse* is KL(student‖teacher), *forward* is KL(teacher‖student); both functions take the student first. All
inputs are natural-log probabilities: `*_logps_NV` whole distributions [N, V], `*_logp_N` one token each [N],
`*_topk_logp_NK` the teacher's top-k tokens [N, K]. Every function returns one value per token, [N], in nats.
"""

import math

import torch
from torch import Tensor

from .methods import TRUNCATIONS


def k1(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """K1 estimate of reverse KL on a student sample: log π_S(x) − log π_T(x) (TrOPD, trust region).

    Differentiated directly it teaches nothing, E[∇log π_S] = 0: use it, negated and detached, as an advantage.
    """
    return student_logp_N - teacher_logp_N


def k2(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """K2 = ½ (log π_T(x) − log π_S(x))²; its direct gradient on student samples is that of reverse KL."""
    return 0.5 * (teacher_logp_N - student_logp_N).square()


def k3(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """K3 = ρ − 1 − log ρ with ρ = π_T(x)/π_S(x); its direct gradient on student samples is that of *forward* KL."""
    log_ratio = teacher_logp_N - student_logp_N
    return torch.expm1(log_ratio) - log_ratio


def reverse_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor) -> Tensor:
    """KL(π_S‖π_T) = Σ π_S (log π_S − log π_T).

    >>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> round(reverse_kl(student, teacher).item(), 4), round(forward_kl(student, teacher).item(), 4)
    (0.3681, 0.5108)
    """
    return _mean_under(student_logps_NV, student_logps_NV - teacher_logps_NV)


def forward_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor) -> Tensor:
    """KL(π_T‖π_S) = Σ π_T (log π_T − log π_S)."""
    return _mean_under(teacher_logps_NV, teacher_logps_NV - student_logps_NV)


def topk_forward_kl(
    student_topk_logp_NK: Tensor,
    teacher_topk_logp_NK: Tensor,
    truncation: str = "none",
    student_tail_logp_N: Tensor | None = None,
) -> Tensor:
    """Forward KL on the teacher's top-k tokens (TrOPD, outlier term; EOPD).

    `none` is the sum as printed, Σ_k π_T (log π_T − log π_S), which can be negative; its gradient in the student's
    logits is P·π_S − π_T·1[top-k]. `teacher_renorm` divides π_T by its mass P on the top-k (value ≥ 0, the same
    gradient divided by P). `tail` adds one bucket for the remaining tokens: the true KL of the coarsened
    distributions, exact at k = V. The student is never renormalised: at k = 1 that loss would be identically zero.

    Args:
        student_topk_logp_NK: [N, K], from the student's full softmax, at the teacher's top-k tokens.
        teacher_topk_logp_NK: [N, K], from the teacher's full softmax.
        truncation: `none`, `teacher_renorm` or `tail`.
        student_tail_logp_N: [N], log of the student's mass on all other tokens, for `tail`. By default 1 minus the mass
            on the top-k, which float32 cannot tell from nothing below 1e-5, and then has no gradient.
    """
    if truncation == "teacher_renorm":
        teacher_topk_logp_NK = teacher_topk_logp_NK - teacher_topk_logp_NK.logsumexp(-1, keepdim=True)
    kl = _mean_under(teacher_topk_logp_NK, teacher_topk_logp_NK - student_topk_logp_NK)
    if truncation == "tail":
        teacher_tail = _tail_logp(teacher_topk_logp_NK)
        student_tail = _tail_logp(student_topk_logp_NK) if student_tail_logp_N is None else student_tail_logp_N
        return kl + teacher_tail.exp() * (teacher_tail - student_tail)
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; choose one of {', '.join(TRUNCATIONS)}")
    return kl


def generalized_jsd(student_logps_NV: Tensor, teacher_logps_NV: Tensor, beta: float) -> Tensor:
    """JSD_β = β KL(π_T‖π_M) + (1−β) KL(π_S‖π_M), π_M = β π_T + (1−β) π_S (GKD).

    By convention β = 0 is forward KL and β = 1 is reverse KL, the limits of JSD_β / (β(1−β)) up to scale.
    """
    if beta == 0.0:
        return forward_kl(student_logps_NV, teacher_logps_NV)
    if beta == 1.0:
        return reverse_kl(student_logps_NV, teacher_logps_NV)
    mixture = _log_mixture(teacher_logps_NV, student_logps_NV, beta)
    teacher_part = _mean_under(teacher_logps_NV, teacher_logps_NV - mixture)
    return beta * teacher_part + (1 - beta) * _mean_under(student_logps_NV, student_logps_NV - mixture)


def topk_jsd_teacher_part(student_topk_logp_NK: Tensor, teacher_topk_logp_NK: Tensor, beta: float) -> Tensor:
    """The direct half of the paper's hybrid JSD: β Σ_{top-k} π_T log(π_T/π_M) (TrOPD, comparison table)."""
    mixture = _log_mixture(teacher_topk_logp_NK, student_topk_logp_NK, beta)
    return beta * _mean_under(teacher_topk_logp_NK, teacher_topk_logp_NK - mixture)


def jsd_sampled_advantage(student_logp_N: Tensor, teacher_logp_N: Tensor, beta: float) -> Tensor:
    """The sampled half of the hybrid JSD as an advantage: −(1−β) log(π_S(x)/π_M(x)), detached."""
    student, teacher = student_logp_N.detach(), teacher_logp_N.detach()
    return -(1 - beta) * (student - _log_mixture(teacher, student, beta))


def skew_forward_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(π_T‖α π_T + (1−α) π_S) (DistiLLM)."""
    mixture = _log_mixture(teacher_logps_NV, student_logps_NV, alpha)
    return _mean_under(teacher_logps_NV, teacher_logps_NV - mixture)


def skew_reverse_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(π_S‖α π_S + (1−α) π_T) (DistiLLM)."""
    mixture = _log_mixture(student_logps_NV, teacher_logps_NV, alpha)
    return _mean_under(student_logps_NV, student_logps_NV - mixture)


def _mean_under(logps: Tensor, values: Tensor) -> Tensor:
    """Σ exp(logps)·values over the last axis, with 0·(anything) = 0 in both passes."""
    impossible = logps == -torch.inf
    return (logps.exp() * values.masked_fill(impossible, 0.0)).sum(-1)


def _log_mixture(first_logps: Tensor, second_logps: Tensor, weight: float) -> Tensor:
    """log(weight·exp(first) + (1−weight)·exp(second)), without 0·∞ in the gradient where both are impossible."""
    if not 0 < weight < 1:
        raise ValueError(f"the mixture weight is {weight}; it must lie strictly between 0 and 1")
    first, second = (logps.clamp_min(torch.finfo(logps.dtype).min / 2) for logps in (first_logps, second_logps))
    return torch.logaddexp(first + math.log(weight), second + math.log1p(-weight))


def _tail_logp(topk_logp_NK: Tensor) -> Tensor:
    """log(1 − Σ exp(topk)), bounded below by the rounding of the dtype so that k = V leaves a bucket of mass ≈ 0."""
    total = topk_logp_NK.logsumexp(-1).clamp_max(-torch.finfo(topk_logp_NK.dtype).eps)
    return torch.log(-torch.expm1(total))
