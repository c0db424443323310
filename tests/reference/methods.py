"""The exact gradient of every method at one state, summed over the vocabulary and over the gate.

Everything is a *loss*, L = −J, and a gradient in the student's raw logits z, with π_S = softmax(z / temperature).
Two kinds of term occur:

    policy gradient   Σ_x π_S(x) · (−A(x)) · ∇log π_S(x)     the advantage A detached, the importance ratio 1
    direct            w · ∇ Σ_{v ∈ top-k} …                   the weight w detached, the sum differentiated

Written from the formulas and not from the torch code, so that the two can disagree.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from . import divergences
from .regions import gate_outcomes
from .vocabulary import Array, log_softmax, mixture_logp, top_k, vector

OUTLIERS = ("fkl_direct", "fkl_scalar", "rkl_direct", "mask", "clip", "k1")


@dataclass(frozen=True)
class Settings:
    """What a method may be asked to do otherwise. A method reads only the fields its formula has."""

    gate: str = "bernoulli"  # bernoulli | expected | hard
    threshold: float = -2.0  # nats; the hard gate trusts r > threshold
    outlier: str = "fkl_direct"  # fkl_direct | fkl_scalar | rkl_direct | mask | clip
    floor: float = -2.0  # nats; clip: max(r, floor)
    k: int = 64
    truncation: str = "none"  # none | teacher_renorm | tail
    beta: float = 0.5  # of the two Jensen-Shannon divergences
    alpha: float = 1.0  # EOPD's weight of the forward KL; TOP-D's share of the teacher; PowerOPD's power
    baseline_k: int | None = None  # of vOPD: the teacher's top-k that the baseline knows; None for all
    residual: bool = True  # of ResOPD: are tokens outside of the top-k sampled?
    union: bool = False  # of ResOPD: are the student's k likeliest tokens in S, too?
    phase: int = 1  # of REOPOLD


DEFAULTS: dict[str, Settings] = {
    "opd": Settings(),
    "gkd": Settings(),
    "fkl": Settings(),
    "jsd": Settings(),
    "entropy_opd": Settings(),
    "eopd": Settings(k=16, truncation="teacher_renorm"),
    "reopold": Settings(),
    "reopold_2stage": Settings(),
    "mask_outlier": Settings(gate="hard", outlier="mask"),
    "fkl_outlier": Settings(gate="bernoulli", outlier="fkl_direct"),
    "tropd_mask": Settings(gate="bernoulli", outlier="mask"),
    "tropd_clip": Settings(gate="hard", outlier="clip"),
    "tropd": Settings(gate="bernoulli", outlier="fkl_direct"),
    "tropd_share": Settings(gate="bernoulli", outlier="fkl_direct"),
    "aopd": Settings(gate="hard", threshold=0.0, outlier="fkl_direct"),
    "vopd": Settings(),
    "mixture_opd": Settings(alpha=0.2),
    "tv_opd": Settings(),
    "power_opd": Settings(alpha=5.0),
    "tropd_released": Settings(gate="bernoulli", outlier="fkl_scalar", truncation="teacher_renorm"),
    "resopd": Settings(k=4, floor=-math.inf),
    "tropd_support": Settings(k=16, floor=-2.0),
}
SUPPORTED = ("resopd", "tropd_support")
GATED = ("mask_outlier", "fkl_outlier", "tropd_mask", "tropd_clip", "tropd", "tropd_share", "aopd", "tropd_released")


def settings_of(method: str, **overrides: object) -> Settings:
    return replace(DEFAULTS[method], **overrides)  # type: ignore[arg-type]


# Gradients in u = z / temperature, from log-probs.


def policy_gradient(student_logp: Array, advantage: Array) -> Array:
    """∇ of −Σ_x π_S(x) A(x) log π_S(x) with π_S · A detached; ∇log π_S(x) = e_x − π_S."""
    student = np.exp(student_logp)
    gradient = np.zeros_like(student)
    for x in range(len(student)):
        if student[x] > 0:
            score = -student
            score[x] += 1.0
            gradient += student[x] * -advantage[x] * score
    return gradient


def topk_forward_kl_gradient(student_logp: Array, teacher_logp: Array, k: int, truncation: str) -> Array:
    """none: P π_S − π_T 1[K]; teacher_renorm: that over P; tail: with −(1 − P) ∇log(1 − Q) besides."""
    student, teacher = np.exp(student_logp), np.exp(teacher_logp)
    kept = top_k(teacher_logp, k)
    mass = math.fsum(teacher[v] for v in kept)
    gradient = mass * student
    for v in kept:
        gradient[v] -= teacher[v]
    if truncation == "teacher_renorm":
        return gradient / mass
    if truncation == "tail":
        rest = [v for v in range(len(student)) if v not in kept]
        teacher_rest = math.fsum(teacher[v] for v in rest)
        student_rest = math.fsum(student[v] for v in rest)
        if teacher_rest > 0:
            gradient += teacher_rest * student
            for v in rest:
                gradient[v] -= teacher_rest * student[v] / student_rest
        return gradient
    assert truncation == "none", f"truncation is {truncation!r}"
    return gradient


def reverse_kl_gradient(student_logp: Array, teacher_logp: Array) -> Array:
    """π_S(v) · (log π_S(v) − log π_T(v) − KL(π_S ‖ π_T))."""
    value = divergences.reverse_kl(student_logp, teacher_logp)
    return np.exp(student_logp) * (student_logp - teacher_logp - value)


def jsd_gradient(student_logp: Array, teacher_logp: Array, beta: float) -> Array:
    """Generalised JSD over the full vocabulary: (1 − β) π_S(v) (log(π_S(v)/M(v)) − its mean under π_S).

    The two terms with ∇M cancel, since β π_T + (1 − β) π_S is M itself and Σ ∇M = 0.
    """
    if beta == 0.0:
        return np.exp(student_logp) - np.exp(teacher_logp)
    if beta == 1.0:
        return reverse_kl_gradient(student_logp, teacher_logp)
    mixture = mixture_logp([(beta, teacher_logp), (1 - beta, student_logp)])
    mean = divergences.kl(student_logp, mixture)
    return (1 - beta) * np.exp(student_logp) * (student_logp - mixture - mean)


def hybrid_jsd_topk_gradient(student_logp: Array, teacher_logp: Array, k: int, beta: float) -> Array:
    """∇ β Σ_{v ∈ K} π_T(v) log(π_T(v)/M(v)), through M: ∇M(v) = (1 − β) π_S(v) (e_v − π_S)."""
    student, teacher = np.exp(student_logp), np.exp(teacher_logp)
    gradient = np.zeros_like(student)
    for v in top_k(teacher_logp, k):
        mixed = beta * teacher[v] + (1 - beta) * student[v]
        score = -student
        score[v] += 1.0
        gradient -= beta * teacher[v] * (1 - beta) * student[v] / mixed * score
    return gradient


def skew_forward_kl_gradient(student_logp: Array, teacher_logp: Array, alpha: float = 0.1) -> Array:
    """∇KL(π_T ‖ M) = −Σ_v π_T(v)/M(v) ∇M(v), with M = α π_T + (1 − α) π_S."""
    student, teacher = np.exp(student_logp), np.exp(teacher_logp)
    gradient = np.zeros_like(student)
    for v in range(len(student)):
        score = -student
        score[v] += 1.0
        mixed = alpha * teacher[v] + (1 - alpha) * student[v]
        gradient -= teacher[v] / mixed * (1 - alpha) * student[v] * score
    return gradient


def skew_reverse_kl_gradient(student_logp: Array, teacher_logp: Array, alpha: float = 0.1) -> Array:
    """∇KL(π_S ‖ M) = Σ_v ∇π_S(v) (log(π_S(v)/M(v)) − α π_S(v)/M(v)), with M = α π_S + (1 − α) π_T."""
    student, teacher = np.exp(student_logp), np.exp(teacher_logp)
    gradient = np.zeros_like(student)
    for v in range(len(student)):
        score = -student
        score[v] += 1.0
        mixed = alpha * student[v] + (1 - alpha) * teacher[v]
        gradient += student[v] * (math.log(student[v] / mixed) - alpha * student[v] / mixed) * score
    return gradient


def guidance_gradient(student_logits: ArrayLike, token: int, beta: float = 0.001, *, temperature: float = 1.0) -> Array:
    """∇ of −β log π_S(x) for a teacher's token x: β (π_S − e_x) / temperature."""
    gradient = beta * np.exp(log_softmax(student_logits, temperature=temperature))
    gradient[token] -= beta
    return gradient / temperature


def expected_guidance_gradient(
    student_logits: ArrayLike, teacher_logits: ArrayLike, beta: float = 0.001, *, temperature: float = 1.0
) -> Array:
    """Σ_x π_T(x) of the above: β ∇KL(π_T ‖ π_S)."""
    total = np.zeros(len(vector(student_logits)))
    for x, logp in enumerate(log_softmax(teacher_logits, temperature=temperature)):
        total += math.exp(logp) * guidance_gradient(student_logits, x, beta, temperature=temperature)
    return total


def support_value(student_logp: Array, teacher_logp: Array, k: int) -> float:
    """The reverse KL of the teacher's top-k and one event for all the rest."""
    kept = top_k(teacher_logp, k)
    rest = [v for v in range(len(student_logp)) if v not in kept]
    coarse = [[logp[v] for v in kept] for logp in (student_logp, teacher_logp)]
    if rest:
        for events, logp in zip(coarse, (student_logp, teacher_logp), strict=True):
            events.append(math.log(math.fsum(np.exp(logp[rest]))))
    return divergences.reverse_kl(*coarse)


def support(student_logp: Array, teacher_logp: Array, settings: Settings) -> list[int]:
    """S: the teacher's top-k, or that and the student's."""
    kept = set(top_k(teacher_logp, settings.k))
    return sorted(kept | set(top_k(student_logp, settings.k)) if settings.union else kept)


def support_term(student_logp: Array, teacher_logp: Array, x: int, settings: Settings) -> tuple[float, Array]:
    """ResOPD's loss and gradient g of the sampled token x, as printed, its two log ratios in the tail capped:

        g = h + (1 − P) b + 1[x ∉ S] (−r ∇log p(x) − b),      b = log((1 − P)/(1 − Q)) · (−Σ_S p ∇log p)/(1 − P),

    h = Σ_S p log(p/q) ∇log p. Without anything outside of S, b is 0.
    """
    p, q = np.exp(student_logp), np.exp(teacher_logp)
    kept = support(student_logp, teacher_logp, settings)
    rest = [v for v in range(len(p)) if v not in kept]
    scores = np.eye(len(p)) - p  # row v is ∇log p(v)
    h = sum(p[v] * (student_logp[v] - teacher_logp[v]) * scores[v] for v in kept)
    value = math.fsum(p[v] * (student_logp[v] - teacher_logp[v]) for v in kept)
    if not rest:
        return value, h
    tail = math.fsum(p[v] for v in rest)
    ratio = min(math.log(tail / math.fsum(q[v] for v in rest)), -settings.floor)
    b = ratio * -sum(p[v] * scores[v] for v in kept) / tail
    value, gradient = value + tail * ratio, h + tail * b
    if x in rest and settings.residual:
        advantage = max(teacher_logp[x] - student_logp[x], settings.floor)
        value, gradient = value - advantage - ratio, gradient - advantage * scores[x] - b
    return value, gradient


def support_surrogate(student_logp: Array, frozen_logp: Array, teacher_logp: Array, settings: Settings) -> float:
    """Σ_S p log(p_old/q) + T·ratio, and outside of S Σ p_old (ρ · −A − ratio · T/T_old), p_old and ratios detached."""
    p, old = np.exp(student_logp), np.exp(frozen_logp)
    kept = support(frozen_logp, teacher_logp, settings)
    rest = [v for v in range(len(p)) if v not in kept]
    total = [p[v] * (frozen_logp[v] - teacher_logp[v]) for v in kept]
    if rest:
        tail, old_tail = math.fsum(p[v] for v in rest), math.fsum(old[v] for v in rest)
        ratio = min(math.log(old_tail / math.fsum(np.exp(teacher_logp[rest]))), -settings.floor)
        total.append(tail * ratio)
        for x in rest if settings.residual else []:
            total.append(-p[x] * max(teacher_logp[x] - frozen_logp[x], settings.floor))
            total.append(-old[x] * ratio * tail / old_tail)
    return math.fsum(total)


# The methods: for each, the detached advantage A(x) of every token and the weight of the direct term.


def outlier_advantage(log_ratio: float, trust: float, settings: Settings, topk_value: float) -> float:
    """A of one sampled token with gate value M = trust: M r, and what the outlier treatment adds to it."""
    trusted_part = trust * log_ratio if trust > 0 else 0.0  # 0 · (−inf) = 0: a rejected token has no r
    if settings.outlier in ("mask", "fkl_direct", "rkl_direct") or trust == 1.0:
        return trusted_part
    if settings.outlier in ("clip", "k1"):
        return trusted_part + (1 - trust) * max(log_ratio, settings.floor if settings.outlier == "clip" else -math.inf)
    assert settings.outlier == "fkl_scalar", f"outlier is {settings.outlier!r}; expected one of {OUTLIERS}"
    return trusted_part + (1 - trust) * -topk_value


def gated_terms(student_logp: Array, teacher_logp: Array, settings: Settings) -> tuple[Array, float]:
    """(A averaged over the gate for every x, expected weight of the direct forward KL)."""
    advantage = np.zeros(len(student_logp))
    direct_weight = 0.0
    value = divergences.topk_forward_kl(student_logp, teacher_logp, settings.k, settings.truncation)
    for x in range(len(student_logp)):
        log_ratio = teacher_logp[x] - student_logp[x]
        for probability, trust in gate_outcomes(log_ratio, settings.gate, threshold=settings.threshold):
            if probability == 0.0:
                continue
            advantage[x] += probability * outlier_advantage(log_ratio, trust, settings, value)
            if settings.outlier in ("fkl_direct", "rkl_direct"):
                direct_weight += math.exp(student_logp[x]) * probability * (1 - trust)
    return advantage, direct_weight


def terms(
    method: str, student_logp: Array, teacher_logp: Array, settings: Settings, selected: bool
) -> tuple[Array, float]:
    """(A(x) of every token, weight of the method's direct term) at one state."""
    size = len(student_logp)
    log_ratio = teacher_logp - student_logp
    nothing = np.zeros(size)
    if method in GATED:
        return gated_terms(student_logp, teacher_logp, settings)
    if method == "opd":
        return log_ratio, 0.0
    if method == "vopd":
        return log_ratio + support_value(student_logp, teacher_logp, settings.baseline_k or size), 0.0
    if method == "mixture_opd":
        mixed = settings.alpha * np.exp(teacher_logp) + (1 - settings.alpha) * np.exp(student_logp)
        return np.log(mixed) - student_logp, 0.0
    if method == "tv_opd":
        return np.where(teacher_logp > student_logp, 1.0, np.where(teacher_logp < student_logp, -1.0, 0.0)), 0.0
    if method == "power_opd":
        return np.exp(teacher_logp) ** settings.alpha - np.exp(student_logp) ** settings.alpha, 0.0
    if method == "gkd":
        return nothing, 1.0
    if method == "fkl":
        if settings.outlier == "fkl_scalar":
            value = divergences.topk_forward_kl(student_logp, teacher_logp, settings.k, settings.truncation)
            return np.full(size, -value), 0.0
        return nothing, 1.0
    if method == "jsd":
        args = (student_logp, teacher_logp)
        sampled = [divergences.hybrid_jsd_sampled_part(*args, x, settings.beta) for x in range(size)]
        return -vector(sampled), 1.0
    if method == "entropy_opd":
        return (log_ratio if selected else nothing), 0.0
    if method == "eopd":
        return log_ratio, settings.alpha if selected else 0.0
    floored = vector([max(r, settings.floor) for r in log_ratio])
    if method == "reopold":
        return floored, 0.0
    assert method == "reopold_2stage", f"unknown method {method!r}"
    if settings.phase == 1:
        return vector([r if r >= settings.floor else 0.0 for r in log_ratio]), 0.0
    return (floored if selected else nothing), 0.0


def direct_value(method: str, student_logp: Array, teacher_logp: Array, settings: Settings) -> float:
    """The sum a method differentiates directly; of reverse KL on the support, the value without a sampled token."""
    if settings.outlier == "rkl_direct":
        return support_term(student_logp, teacher_logp, 0, replace(settings, residual=False))[0]
    if method == "gkd":
        return divergences.generalised_jsd(student_logp, teacher_logp, settings.beta)
    if method == "jsd":
        return divergences.hybrid_jsd_topk_part(student_logp, teacher_logp, settings.k, settings.beta)
    return divergences.topk_forward_kl(student_logp, teacher_logp, settings.k, settings.truncation)


def direct_gradient(method: str, student_logp: Array, teacher_logp: Array, settings: Settings) -> Array:
    """∇ of `direct_value`, or of reverse KL on the support, its log ratios frozen."""
    if settings.outlier == "rkl_direct":
        return support_term(student_logp, teacher_logp, 0, replace(settings, residual=False))[1]
    if method == "gkd":
        return jsd_gradient(student_logp, teacher_logp, settings.beta)
    if method == "jsd":
        return hybrid_jsd_topk_gradient(student_logp, teacher_logp, settings.k, settings.beta)
    return topk_forward_kl_gradient(student_logp, teacher_logp, settings.k, settings.truncation)


def expected_gradient(
    method: str,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    selected: bool = True,
    temperature: float = 1.0,
    **overrides: object,
) -> Array:
    """E over x ~ π_S and over the gate of the gradient of the method's loss, in the student's logits [V].

    `selected` is the state's entropy selection: the student's quantile (entropy_opd, reopold_2stage in
    phase 2) or the teacher's H > τ (eopd). Nothing is divided by a count.
    """
    settings = settings_of(method, **overrides)
    student = log_softmax(student_logits, temperature=temperature)
    teacher = log_softmax(teacher_logits, temperature=temperature)
    if method in SUPPORTED:
        drawn = [support_term(student, teacher, x, settings)[1] for x in range(len(student))]
        return np.exp(student) @ np.array(drawn) / temperature
    advantage, weight = terms(method, student, teacher, settings, selected)
    gradient = policy_gradient(student, advantage)
    if weight != 0.0:
        gradient = gradient + weight * direct_gradient(method, student, teacher, settings)
    return gradient / temperature


def expected_loss(
    method: str,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    selected: bool = True,
    temperature: float = 1.0,
    **overrides: object,
) -> float:
    """E over x ~ π_S and over the gate of the method's loss: Σ_x π_S(x) (−A(x)) + w · direct."""
    here = log_softmax(student_logits, temperature=temperature)
    teacher = log_softmax(teacher_logits, temperature=temperature)
    settings = settings_of(method, **overrides)
    return surrogate(method, here, here, teacher, settings, selected)


def surrogate(
    method: str,
    student_logp: Array,
    frozen_logp: Array,
    teacher_logp: Array,
    settings: Settings,
    selected: bool,
) -> float:
    """The function of the student whose gradient at `student_logp == frozen_logp` is `expected_gradient`.

    Σ_x π_old(x) · (−exp(lp_new − lp_old) A_old(x)) + w_old · direct(lp_new), where π_old and whatever else is
    detached is evaluated at `frozen_logp`.
    """
    if method in SUPPORTED:
        return support_surrogate(student_logp, frozen_logp, teacher_logp, settings)
    advantage, weight = terms(method, frozen_logp, teacher_logp, settings, selected)
    total = []
    for x in range(len(frozen_logp)):
        if frozen_logp[x] > -math.inf:
            importance_ratio = math.exp(student_logp[x] - frozen_logp[x])
            total.append(math.exp(frozen_logp[x]) * -importance_ratio * advantage[x])
    if weight != 0.0 and settings.outlier == "rkl_direct":  # its log ratios are frozen
        alone = replace(settings, residual=False)
        total.append(weight * support_surrogate(student_logp, frozen_logp, teacher_logp, alone))
    elif weight != 0.0:
        total.append(weight * direct_value(method, student_logp, teacher_logp, settings))
    return math.fsum(total)
