"""Divergences and estimators between a student and a teacher, per token.

*Reverse* is KL(student‖teacher), *forward* is KL(teacher‖student); both functions take the student first. All
inputs are natural-log probabilities: `*_logps_NV` whole distributions [N, V], `*_logp_N` one token each [N],
`*_topk_logp_NK` the teacher's top-k tokens [N, K]. Every function returns one value per token, [N], in nats. N stands
for any number of axes, the same for student and teacher.
"""

import math

import torch
from torch import Tensor

from .method_parts import TRUNCATIONS
from .shapes import check_rows, check_same_shape


def k1(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """K1 estimate of reverse KL on a student sample: log π_S(x) − log π_T(x) (TrOPD, arXiv 2606.01249, trust region).

    Differentiated directly it teaches nothing, E[∇log π_S] = 0: use it, negated and detached, as an advantage.

    >>> round(k1(torch.tensor([0.9]).log(), torch.tensor([0.5]).log()).item(), 4)
    0.5878

    Raises:
        ValueError: the two differ in shape.
    """
    check_same_shape(student_logp_N=student_logp_N, teacher_logp_N=teacher_logp_N)
    return student_logp_N - teacher_logp_N


def k2(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """K2 = ½ (log π_T(x) − log π_S(x))²; its direct gradient on student samples is that of reverse KL.

    >>> round(k2(torch.tensor([0.9]).log(), torch.tensor([0.5]).log()).item(), 4)
    0.1727

    Raises:
        ValueError: the two differ in shape.
    """
    check_same_shape(student_logp_N=student_logp_N, teacher_logp_N=teacher_logp_N)
    return 0.5 * (teacher_logp_N - student_logp_N).square()


def k3(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """K3 = ρ − 1 − log ρ with ρ = π_T(x)/π_S(x); its direct gradient on student samples is that of *forward* KL.

    >>> round(k3(torch.tensor([0.9]).log(), torch.tensor([0.5]).log()).item(), 4)
    0.1433

    Raises:
        ValueError: the two differ in shape.
    """
    check_same_shape(student_logp_N=student_logp_N, teacher_logp_N=teacher_logp_N)
    log_ratio = teacher_logp_N - student_logp_N
    return torch.expm1(log_ratio) - log_ratio


def reverse_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor) -> Tensor:
    """KL(π_S‖π_T) = Σ π_S (log π_S − log π_T).

    >>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> round(reverse_kl(student, teacher).item(), 4), round(forward_kl(student, teacher).item(), 4)
    (0.3681, 0.5108)

    Raises:
        ValueError: the two differ in shape.
    """
    _check_distributions(student_logps_NV, teacher_logps_NV)
    return _mean_under(student_logps_NV, student_logps_NV - teacher_logps_NV)


def forward_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor) -> Tensor:
    """KL(π_T‖π_S) = Σ π_T (log π_T − log π_S).

    >>> round(forward_kl(torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()).item(), 4)
    0.5108

    Raises:
        ValueError: the two differ in shape.
    """
    _check_distributions(student_logps_NV, teacher_logps_NV)
    return _mean_under(teacher_logps_NV, teacher_logps_NV - student_logps_NV)


def topk_forward_kl(
    student_topk_logp_NK: Tensor,
    teacher_topk_logp_NK: Tensor,
    truncation: str = "none",
    student_tail_logp_N: Tensor | None = None,
) -> Tensor:
    """Forward KL on the teacher's top-k tokens (TrOPD, arXiv 2606.01249, outlier term; EOPD, arXiv 2603.07079).

    `none` is the sum as printed, Σ_k π_T (log π_T − log π_S), which can be negative; its gradient in the student's
    logits is P·π_S − π_T·1[top-k]. `teacher_renorm` divides π_T by its mass P on the top-k (value ≥ 0, the same
    gradient divided by P). `tail` adds one bucket for the remaining tokens: the true KL of the coarsened
    distributions, exact at k = V. The student is never renormalised: at k = 1 that loss would be identically zero.

    >>> student, teacher = torch.tensor([[0.3, 0.2]]).log(), torch.tensor([[0.6, 0.2]]).log()
    >>> [round(topk_forward_kl(student, teacher, way).item(), 4) for way in ("none", "teacher_renorm", "tail")]
    [0.4159, 0.743, 0.2326]

    Args:
        student_topk_logp_NK: [N, K], from the student's full softmax, at the teacher's top-k tokens.
        teacher_topk_logp_NK: [N, K], from the teacher's full softmax.
        truncation: `none`, `teacher_renorm` or `tail`.
        student_tail_logp_N: [N], log of the student's mass on all other tokens, for `tail`. By default 1 minus the mass
            on the top-k, which float32 cannot tell from nothing below 1e-5, and then has no gradient.

    Raises:
        ValueError: student and teacher differ in shape, the tail has other rows, or `truncation` is unknown.
    """
    check_same_shape(least_axes=1, student_topk_logp_NK=student_topk_logp_NK, teacher_topk_logp_NK=teacher_topk_logp_NK)
    check_rows(student_topk_logp_NK[..., 0], 0, student_tail_logp_N=student_tail_logp_N)
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


def support_reverse_kl(
    student_topk_logp_NK: Tensor,
    teacher_topk_logp_NK: Tensor,
    student_tail_logp_N: Tensor,
    outside_N: Tensor | None = None,
    floor: float = -math.inf,
) -> Tensor:
    """Reverse KL on the teacher's top-k S, all other tokens taken as one bucket (ResOPD, arXiv 2610.04882).

    With T and U what student and teacher have outside of S, this is the KL of the coarsened distributions,
    Σ_S π_S log(π_S/π_T) + T log(T/U), and differentiated it gives Σ_S log(π_S/π_T) ∇π_S + log(T/U) ∇T. Where the
    sampled token is outside, a control variate is taken off, log(T/U) with the gradient log(T/U) ∇log T: what the
    bucket stands for is then added for that token by K1. In expectation it takes off what the bucket's gradient adds.

    >>> student, teacher = torch.tensor([[0.6]]).log(), torch.tensor([[0.9]]).log()
    >>> tail = torch.tensor([0.4]).log()
    >>> round(support_reverse_kl(student, teacher, tail).item(), 4)  # 0.6 log(0.6/0.9) + 0.4 log(0.4/0.1)
    0.3112
    >>> round(support_reverse_kl(student, teacher, tail, torch.tensor([True]), floor=-1.0).item(), 4)  # log 4 capped
    -0.8433

    Args:
        student_topk_logp_NK: [N, K], from the student's full softmax, at the teacher's top-k tokens.
        teacher_topk_logp_NK: [N, K]; an entry of −inf is no part of S, and its place is read by nobody.
        student_tail_logp_N: [N], log T.
        outside_N: [N], is the sampled token outside of S? `None` leaves the control variate out.
        floor: τ, which log(U/T) is raised to; the bucket of a token that K1 clips at the same τ.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_same_shape(least_axes=1, student_topk_logp_NK=student_topk_logp_NK, teacher_topk_logp_NK=teacher_topk_logp_NK)
    check_rows(teacher_topk_logp_NK.sum(-1), 0, student_tail_logp_N=student_tail_logp_N, outside_N=outside_N)
    log_ratio_NK = (student_topk_logp_NK - teacher_topk_logp_NK).detach()
    log_ratio_NK = log_ratio_NK.masked_fill(teacher_topk_logp_NK == -torch.inf, 0.0)
    bucket = (student_tail_logp_N.detach() - _tail_logp(teacher_topk_logp_NK)).clamp_max(-floor)
    coarse = _mean_under(student_topk_logp_NK, log_ratio_NK) + student_tail_logp_N.exp() * bucket
    if outside_N is None:
        return coarse
    control = bucket * torch.exp(student_tail_logp_N - student_tail_logp_N.detach())
    return coarse - torch.where(outside_N, control, 0.0)


def generalized_jsd(student_logps_NV: Tensor, teacher_logps_NV: Tensor, beta: float) -> Tensor:
    """JSD_β = β KL(π_T‖π_M) + (1−β) KL(π_S‖π_M), π_M = β π_T + (1−β) π_S (GKD, arXiv 2306.13649).

    By convention β = 0 is forward KL and β = 1 is reverse KL, the limits of JSD_β / (β(1−β)) up to scale.

    >>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> [round(generalized_jsd(student, teacher, beta).item(), 3) for beta in (0.0, 0.5, 1.0)]
    [0.511, 0.102, 0.368]

    Raises:
        ValueError: the two differ in shape, or β is outside [0, 1].
    """
    _check_distributions(student_logps_NV, teacher_logps_NV)
    if beta == 0.0:
        return forward_kl(student_logps_NV, teacher_logps_NV)
    if beta == 1.0:
        return reverse_kl(student_logps_NV, teacher_logps_NV)
    mixture = _log_mixture(teacher_logps_NV, student_logps_NV, beta)
    teacher_part = _mean_under(teacher_logps_NV, teacher_logps_NV - mixture)
    return beta * teacher_part + (1 - beta) * _mean_under(student_logps_NV, student_logps_NV - mixture)


def topk_jsd_teacher_part(student_topk_logp_NK: Tensor, teacher_topk_logp_NK: Tensor, beta: float) -> Tensor:
    """The direct half of the hybrid JSD: β Σ_{top-k} π_T log(π_T/π_M) (TrOPD, arXiv 2606.01249, comparison table).

    >>> student, teacher = torch.tensor([[0.3, 0.2]]).log(), torch.tensor([[0.6, 0.2]]).log()
    >>> round(topk_jsd_teacher_part(student, teacher, 0.5).item(), 4)
    0.0863

    Raises:
        ValueError: the two differ in shape, or β is not strictly between 0 and 1.
    """
    check_same_shape(least_axes=1, student_topk_logp_NK=student_topk_logp_NK, teacher_topk_logp_NK=teacher_topk_logp_NK)
    mixture = _log_mixture(teacher_topk_logp_NK, student_topk_logp_NK, beta)
    return beta * _mean_under(teacher_topk_logp_NK, teacher_topk_logp_NK - mixture)


def jsd_sampled_advantage(student_logp_N: Tensor, teacher_logp_N: Tensor, beta: float) -> Tensor:
    """The sampled half of the hybrid JSD as an advantage: −(1−β) log(π_S(x)/π_M(x)), detached.

    TrOPD, arXiv 2606.01249, comparison table.

    >>> round(jsd_sampled_advantage(torch.tensor([0.9]).log(), torch.tensor([0.5]).log(), 0.5).item(), 4)
    -0.1257

    Raises:
        ValueError: the two differ in shape, or β is not strictly between 0 and 1.
    """
    check_same_shape(student_logp_N=student_logp_N, teacher_logp_N=teacher_logp_N)
    student, teacher = student_logp_N.detach(), teacher_logp_N.detach()
    return -(1 - beta) * (student - _log_mixture(teacher, student, beta))


def skew_forward_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(π_T‖α π_T + (1−α) π_S) (DistiLLM, arXiv 2402.03898).

    >>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> round(skew_forward_kl(student, teacher).item(), 4)
    0.3653

    Raises:
        ValueError: the two differ in shape, or α is not strictly between 0 and 1.
    """
    _check_distributions(student_logps_NV, teacher_logps_NV)
    mixture = _log_mixture(teacher_logps_NV, student_logps_NV, alpha)
    return _mean_under(teacher_logps_NV, teacher_logps_NV - mixture)


def skew_reverse_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(π_S‖α π_S + (1−α) π_T) (DistiLLM, arXiv 2402.03898).

    >>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> round(skew_reverse_kl(student, teacher).item(), 4)
    0.3071

    Raises:
        ValueError: the two differ in shape, or α is not strictly between 0 and 1.
    """
    _check_distributions(student_logps_NV, teacher_logps_NV)
    mixture = _log_mixture(student_logps_NV, teacher_logps_NV, alpha)
    return _mean_under(student_logps_NV, student_logps_NV - mixture)


def _check_distributions(student_logps_NV: Tensor, teacher_logps_NV: Tensor) -> None:
    check_same_shape(least_axes=1, student_logps_NV=student_logps_NV, teacher_logps_NV=teacher_logps_NV)


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
