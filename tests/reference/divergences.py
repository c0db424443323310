"""Divergences and their estimators. Every direction is in the name."""

import math

from numpy.typing import ArrayLike

from .vocabulary import mixture_logp, top_k, vector

TRUNCATIONS = ("none", "teacher_renorm", "tail")


def kl(first_logp: ArrayLike, second_logp: ArrayLike) -> float:
    """KL(first ‖ second) = Σ first(v) · (log first(v) − log second(v)), with 0 · log 0 = 0."""
    total = []
    for a, b in zip(vector(first_logp), vector(second_logp), strict=True):
        if a > -math.inf:
            total.append(math.exp(a) * (a - b))
    return math.fsum(total) if math.inf not in total else math.inf


def reverse_kl(student_logp: ArrayLike, teacher_logp: ArrayLike) -> float:
    """KL(π_S ‖ π_T)."""
    return kl(student_logp, teacher_logp)


def forward_kl(student_logp: ArrayLike, teacher_logp: ArrayLike) -> float:
    """KL(π_T ‖ π_S)."""
    return kl(teacher_logp, student_logp)


def total_variation(student_logp: ArrayLike, teacher_logp: ArrayLike) -> float:
    """TV = ½ Σ |π_S(v) − π_T(v)|."""
    pairs = zip(vector(student_logp), vector(teacher_logp), strict=True)
    return 0.5 * math.fsum(abs(math.exp(s) - math.exp(t)) for s, t in pairs)


def k1(log_ratio: float) -> float:
    """−log ρ, with log ρ = log π_T − log π_S of a student's sample: unbiased for the reverse KL."""
    return -log_ratio


def k2(log_ratio: float) -> float:
    """½ (log ρ)²: biased in value; its direct gradient is the reverse KL's in expectation."""
    return 0.5 * log_ratio**2


def k3(log_ratio: float) -> float:
    """ρ − 1 − log ρ: unbiased for the reverse KL, never negative; its direct gradient is the forward KL's."""
    return math.exp(log_ratio) - 1.0 - log_ratio


def topk_forward_kl(student_logp: ArrayLike, teacher_logp: ArrayLike, k: int, truncation: str = "none") -> float:
    """The forward KL on the teacher's top-k; the student is always normalised over the full vocabulary.

    none            Σ_{v ∈ K} π_T(v) (log π_T(v) − log π_S(v)), which can be negative
    teacher_renorm  the same with π̃_T = π_T / P, P = Σ_{v ∈ K} π_T(v)
    tail            none + (1 − P) (log(1 − P) − log(1 − Q)), Q = Σ_{v ∈ K} π_S(v)
    """
    student, teacher = vector(student_logp), vector(teacher_logp)
    kept = [v for v in top_k(teacher, k) if teacher[v] > -math.inf]
    mass = math.fsum(math.exp(teacher[v]) for v in kept)
    printed = math.fsum(math.exp(teacher[v]) * (teacher[v] - student[v]) for v in kept)
    if truncation == "none":
        return printed
    if truncation == "teacher_renorm":
        renormalised = [teacher[v] - math.log(mass) for v in kept]
        terms = [math.exp(lp) * (lp - student[v]) for lp, v in zip(renormalised, kept, strict=True)]
        return math.fsum(terms)
    assert truncation == "tail", f"truncation is {truncation!r}; expected one of {TRUNCATIONS}"
    rest = [v for v in range(len(teacher)) if v not in top_k(teacher, k)]
    teacher_rest = math.fsum(math.exp(teacher[v]) for v in rest)
    student_rest = math.fsum(math.exp(student[v]) for v in rest)
    if teacher_rest == 0.0:
        return printed
    return printed + teacher_rest * (math.log(teacher_rest) - math.log(student_rest))


def generalised_jsd(student_logp: ArrayLike, teacher_logp: ArrayLike, beta: float) -> float:
    """β KL(π_T ‖ M) + (1 − β) KL(π_S ‖ M), M = β π_T + (1 − β) π_S; β = 0 forward, β = 1 reverse KL."""
    if beta == 0.0:
        return forward_kl(student_logp, teacher_logp)
    if beta == 1.0:
        return reverse_kl(student_logp, teacher_logp)
    student, teacher = vector(student_logp), vector(teacher_logp)
    mixture = mixture_logp([(beta, teacher), (1 - beta, student)])
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def hybrid_jsd_topk_part(student_logp: ArrayLike, teacher_logp: ArrayLike, k: int, beta: float) -> float:
    """β Σ_{v ∈ top-k(π_T)} π_T(v) log(π_T(v) / π_M(v)): the part that is differentiated directly."""
    student, teacher = vector(student_logp), vector(teacher_logp)
    mixture = mixture_logp([(beta, teacher), (1 - beta, student)])
    kept = [v for v in top_k(teacher, k) if teacher[v] > -math.inf]
    return beta * math.fsum(math.exp(teacher[v]) * (teacher[v] - mixture[v]) for v in kept)


def hybrid_jsd_sampled_part(student_logp: ArrayLike, teacher_logp: ArrayLike, token: int, beta: float) -> float:
    """(1 − β) log(π_S(x) / π_M(x)) of the sampled token x: minus the advantage of its policy gradient."""
    student, teacher = vector(student_logp), vector(teacher_logp)
    mixture = mixture_logp([(beta, teacher), (1 - beta, student)])
    return (1 - beta) * (student[token] - mixture[token])


def skew_forward_kl(student_logp: ArrayLike, teacher_logp: ArrayLike, alpha: float = 0.1) -> float:
    """KL(π_T ‖ α π_T + (1 − α) π_S)."""
    student, teacher = vector(student_logp), vector(teacher_logp)
    return kl(teacher, mixture_logp([(alpha, teacher), (1 - alpha, student)]))


def skew_reverse_kl(student_logp: ArrayLike, teacher_logp: ArrayLike, alpha: float = 0.1) -> float:
    """KL(π_S ‖ α π_S + (1 − α) π_T)."""
    student, teacher = vector(student_logp), vector(teacher_logp)
    return kl(student, mixture_logp([(alpha, student), (1 - alpha, teacher)]))
