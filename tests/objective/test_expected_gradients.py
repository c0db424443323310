"""On a vocabulary small enough to enumerate, our estimator averages to the exact gradient of every method.

Every sampled token x and both outcomes of the gate become one row each, with its probability; the rows' gradients are
ours, through the head, the gate, the direct term and the token losses. Nothing is sampled.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import reference
from reference import Array, log_softmax, pair
from tropd import objective
from tropd.objective import Head, Method, TokenSignals, get_method

V, K, TAU = 6, 3, -0.5
STUDENT, TEACHER = pair(5)


@dataclass(frozen=True)
class Rows:
    """Our estimator at one state, outcome by outcome: probabilities [R], gradients [R, V], losses [R]."""

    probability: Array
    gradient: Array
    loss: Array

    @property
    def mean(self) -> Array:
        return self.probability @ self.gradient

    @property
    def second_moment(self) -> float:
        return float(self.probability @ (self.gradient**2).sum(-1))


def outcomes(method: Method, student_logp: Array, teacher_logp: Array) -> list[tuple[float, int, float]]:
    """(probability, x, u): for the Bernoulli gate u stands in the middle of [0, P_trust) and of [P_trust, 1)."""
    found = []
    for x in range(len(student_logp)):
        sampled = np.exp(student_logp[x])
        trusted = min(1.0, np.exp(teacher_logp[x] - student_logp[x]))
        if method.gate == "bernoulli":
            found.append((sampled * trusted, x, trusted / 2))
            if trusted < 1.0:
                found.append((sampled * (1 - trusted), x, (1 + trusted) / 2))
        else:
            found.append((sampled, x, 0.0))
    return found


def direct_term(
    method: Method,
    signals: TokenSignals,
    teacher_logits: torch.Tensor,
    temperature: float,
    token_ids: torch.Tensor,
):
    """The direct term of the rows that have one, as a batch would build it."""
    if not (method.needs_topk or method.needs_full_teacher):
        return None
    outlier = signals.outlier_weight
    everywhere = method.trust != "k1" or method.baseline != "none"
    index = torch.arange(len(outlier)) if everywhere else outlier.nonzero().squeeze(-1)
    head = Head(torch.eye(V, dtype=torch.float64), temperature=temperature)
    hidden = teacher_logits.expand(len(index), V)
    if method.needs_full_teacher:
        return objective.full_term(method, signals, index, hidden, head, token_ids)
    ids, logp = objective.topk_logps(hidden, head, min(method.fkl_top_k, V))
    return objective.topk_term(method, signals, index, ids, logp)


def enumerated(
    method: Method,
    student_logits: Array = STUDENT,
    teacher_logits: Array = TEACHER,
    *,
    trusted: bool = True,
    temperature: float = 1.0,
) -> Rows:
    """Our estimator for every outcome. `trusted` answers the entropy gates; an identity head makes states logits."""
    student_logp = log_softmax(student_logits, temperature=temperature)
    teacher_logp = log_softmax(teacher_logits, temperature=temperature)
    probabilities, tokens, uniforms = map(list, zip(*outcomes(method, student_logp, teacher_logp), strict=True))
    rollout, teacher = (torch.tensor(logp)[tokens] for logp in (student_logp, teacher_logp))
    selected = torch.full(rollout.shape, trusted)  # with a union of supports all are: the loss finds what is in it
    if method.gate == "support" and method.support == "teacher":
        kept = reference.top_k(teacher_logp, method.fkl_top_k)
        selected = torch.tensor([token in kept for token in tokens])
    trust = objective.trust_weight(
        method.gate,
        teacher - rollout,
        uniforms=torch.tensor(uniforms, dtype=torch.float64),
        tau=method.outlier_tau,
        selected=selected,
    )
    signals = TokenSignals(rollout, teacher, trust, 1 - trust, torch.zeros_like(trust))
    hidden = torch.tensor(student_logits).repeat(len(tokens), 1).requires_grad_(True)
    head = Head(torch.eye(V, dtype=torch.float64), temperature=temperature)
    direct = direct_term(method, signals, torch.tensor(teacher_logits), temperature, torch.tensor(tokens))
    logp, values, _ = objective.student_terms(hidden, head, torch.tensor(tokens), direct, slice_tokens=8)
    losses = objective.token_losses(method, signals, logp, values)
    loss = losses.trust + losses.outlier + losses.guidance + losses.reward
    (gradient,) = torch.autograd.grad(loss.sum(), hidden)
    return Rows(np.array(probabilities), gradient.numpy(), loss.detach().numpy())


GATES = {
    "bernoulli": ({"gate": "bernoulli"}, {"gate": "bernoulli"}),
    "expected": ({"gate": "expected"}, {"gate": "expected"}),
    "hard": ({"gate": "hard", "outlier_tau": TAU}, {"gate": "hard", "threshold": TAU}),
}
OUTLIERS = {
    "fkl_direct": ({"outlier": "fkl_direct", "fkl_top_k": K}, {"outlier": "fkl_direct", "k": K}),
    "fkl_scalar": ({"outlier": "fkl_scalar", "fkl_top_k": K}, {"outlier": "fkl_scalar", "k": K}),
    "mask": ({"outlier": "mask"}, {"outlier": "mask"}),
    "clip": ({"outlier": "clip", "outlier_tau": TAU}, {"outlier": "clip", "floor": TAU}),
    "k1": ({"outlier": "k1"}, {"outlier": "k1"}),
    "rkl_direct": (
        {"outlier": "rkl_direct", "fkl_top_k": K, "outlier_tau": TAU},
        {"outlier": "rkl_direct", "k": K, "floor": TAU},
    ),
}
# Name, method, our settings, the twin's settings. `trusted` and `selected` are the entropy gates' two words.
CASES = {
    "opd": ("opd", {}, {}),
    **{f"gkd {beta}": ("gkd", {"jsd_beta": beta}, {"beta": beta}) for beta in (0.0, 0.3, 0.5, 1.0)},
    **{f"fkl {k}": ("fkl", {"fkl_top_k": k}, {"k": k}) for k in (1, K, V, 64)},
    "fkl scalar": ("fkl", {"outlier": "fkl_scalar", "fkl_top_k": K}, {"outlier": "fkl_scalar", "k": K}),
    **{f"jsd {k}": ("jsd", {"fkl_top_k": k}, {"k": k}) for k in (1, K, V)},
    "jsd 0.2": ("jsd", {"fkl_top_k": K, "jsd_beta": 0.2}, {"k": K, "beta": 0.2}),
    "entropy_opd selected": ("entropy_opd", {}, {"selected": True}),
    "entropy_opd passed over": ("entropy_opd", {}, {"selected": False}),
    "eopd uncertain": ("eopd", {"fkl_top_k": K}, {"k": K, "selected": True}),
    "eopd α = 0.3": ("eopd", {"fkl_top_k": K, "fkl_weight": 0.3}, {"k": K, "alpha": 0.3, "selected": True}),
    "eopd certain": ("eopd", {"fkl_top_k": K}, {"k": K, "selected": False}),
    "reopold": ("reopold", {"outlier_tau": TAU}, {"floor": TAU}),
    "reopold_2stage, I": ("reopold_2stage", {"outlier_tau": TAU}, {"floor": TAU}),
    "reopold_2stage, II": ("reopold_2stage", {"advantage_floor": TAU}, {"floor": TAU, "phase": 2}),
    "reopold_2stage, II, passed over": (
        "reopold_2stage",
        {"advantage_floor": TAU},
        {"floor": TAU, "phase": 2, "selected": False},
    ),
    "mask_outlier": ("mask_outlier", {"outlier_tau": TAU}, {"threshold": TAU}),
    "fkl_outlier": ("fkl_outlier", {"fkl_top_k": K}, {"k": K}),
    "tropd_mask": ("tropd_mask", {}, {}),
    "tropd_clip": ("tropd_clip", {"outlier_tau": TAU}, {"threshold": TAU, "floor": TAU}),
    **{
        f"tropd {truncation} {k}": (
            "tropd",
            {"fkl_top_k": k, "fkl_truncation": truncation},
            {"k": k, "truncation": truncation},
        )
        for truncation in reference.TRUNCATIONS
        for k in (1, K, V)
    },
    "tropd_share": ("tropd_share", {"fkl_top_k": K}, {"k": K}),
    "aopd": ("aopd", {"fkl_top_k": K}, {"k": K}),
    "vopd": ("vopd", {}, {}),
    **{f"vopd {k}": ("vopd", {"baseline": "top_k", "fkl_top_k": k}, {"baseline_k": k}) for k in (1, K, V)},
    **{f"mixture_opd {a}": ("mixture_opd", {"advantage_alpha": a}, {"alpha": a}) for a in (0.2, 0.9, 1.0)},
    "tv_opd": ("tv_opd", {}, {}),
    **{f"power_opd {a}": ("power_opd", {"advantage_alpha": a}, {"alpha": a}) for a in (5.0, 0.5)},
    "tropd_released": ("tropd_released", {"fkl_top_k": K}, {"k": K}),
    **{f"resopd {k}": ("resopd", {"fkl_top_k": k}, {"k": k}) for k in (1, K, V - 1, V)},
    **{
        f"tropd_support {tau} {k}": ("tropd_support", {"fkl_top_k": k, "outlier_tau": tau}, {"k": k, "floor": tau})
        for tau in (-2.0, TAU, -0.01)
        for k in (1, K, V)
    },
    **{
        f"union {outlier} {k}": (
            "tropd_support",
            {"support": "union", "outlier": outlier, "fkl_top_k": k}
            | ({"outlier_tau": TAU} if outlier == "clip" else {}),
            {"union": True, "k": k, "floor": TAU if outlier == "clip" else -np.inf, "residual": outlier != "mask"},
        )
        for outlier in ("clip", "k1", "mask")
        for k in (1, 2, K, V)
    },
    **{
        f"fkl_outlier, support {tau} {k}": (
            "fkl_outlier",
            {"outlier": "rkl_direct", "fkl_top_k": k, "outlier_tau": tau},
            {"outlier": "rkl_direct", "k": k, "floor": tau},
        )
        for tau in (-2.0, TAU, -0.01)
        for k in (1, K, V)
    },
    "resopd, the bucket alone": ("resopd", {"fkl_top_k": K, "outlier": "mask"}, {"k": K, "residual": False}),
    **{
        f"tropd {gate} {outlier}": (
            "tropd",
            GATES[gate][0] | OUTLIERS[outlier][0],
            GATES[gate][1] | OUTLIERS[outlier][1],
        )
        for gate in GATES
        for outlier in OUTLIERS
    },
}


def ours_and_exact(case: str, temperature: float = 1.0, **states: Array) -> tuple[Array, Array]:
    name, changes, overrides = CASES[case]
    method = get_method(name, **changes)
    if overrides.get("phase") == 2:
        method = method.stage(1.0)
    selected = overrides.get("selected", True)
    trusted = not selected if method.gate == "teacher_entropy" else selected
    logits = (states.get("student", STUDENT), states.get("teacher", TEACHER))
    ours = enumerated(method, *logits, trusted=trusted, temperature=temperature).mean
    return ours, reference.expected_gradient(name, *logits, temperature=temperature, **overrides)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_our_estimator_averages_to_the_exact_gradient(case, temperature):
    ours, exact = ours_and_exact(case, temperature)
    assert ours == pytest.approx(exact, abs=1e-13)
    assert ours.sum() == pytest.approx(0.0, abs=1e-14)  # shifting all logits changes nothing


def test_every_method_is_among_the_cases():
    assert {name for name, _, _ in CASES.values()} == set(objective.METHODS) == set(reference.DEFAULTS)


@pytest.mark.parametrize("seed", [20, 21, 22])
@pytest.mark.parametrize("case", ["tropd none 3", "tropd expected fkl_direct", "tropd_clip", "aopd", "jsd 3"])
def test_so_it_does_for_students_far_from_their_teachers(case, seed):
    student, teacher = pair(seed, spread=6.0)
    ours, exact = ours_and_exact(case, student=student, teacher=teacher)
    assert ours == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("case", ["tropd none 3", "tropd_mask", "tropd expected fkl_direct", "fkl 3", "aopd"])
def test_a_token_the_teacher_all_but_forbids_is_an_outlier(case):
    teacher = TEACHER.copy()
    teacher[2] = -600.0
    ours, exact = ours_and_exact(case, teacher=teacher)
    assert ours == pytest.approx(exact, abs=1e-12)


# Laws of the estimator.


def change(gate: str, outlier: str) -> dict:
    return GATES[gate][0] | OUTLIERS[outlier][0]


@pytest.mark.parametrize("outlier", [outlier for outlier in OUTLIERS if outlier != "k1"])  # there it draws nothing
def test_the_expected_gate_is_the_bernoulli_gate_with_less_variance(outlier):
    bernoulli = enumerated(get_method("tropd", **change("bernoulli", outlier)))
    expected = enumerated(get_method("tropd", **change("expected", outlier)))
    assert expected.mean == pytest.approx(bernoulli.mean, abs=1e-14)
    assert expected.probability @ expected.loss == pytest.approx(bernoulli.probability @ bernoulli.loss, abs=1e-14)
    assert expected.second_moment < bernoulli.second_moment


def test_scalar_forward_kl_on_every_token_teaches_nothing_and_direct_does():
    scalar = enumerated(get_method("fkl", outlier="fkl_scalar", fkl_top_k=K))
    direct = enumerated(get_method("fkl", fkl_top_k=K))
    assert scalar.mean == pytest.approx(np.zeros(V), abs=1e-15)
    assert np.abs(direct.mean).max() > 0.1
    assert scalar.loss == pytest.approx(direct.loss, abs=1e-14)  # at ratio 1 the two losses read the same


def test_opd_averages_to_the_gradient_of_reverse_kl():
    exact = reference.reverse_kl_gradient(log_softmax(STUDENT), log_softmax(TEACHER))
    assert enumerated(get_method("opd")).mean == pytest.approx(exact, abs=1e-14)


def test_gkd_needs_no_averaging_over_the_sampled_token():
    rows = enumerated(get_method("gkd", jsd_beta=1.0))
    exact = reference.reverse_kl_gradient(log_softmax(STUDENT), log_softmax(TEACHER))
    for gradient in rows.gradient:
        assert gradient == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize(
    "name", ["opd", "gkd", "entropy_opd", "reopold", "reopold_2stage", "mask_outlier", "tropd_mask", "tropd_clip"]
)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(name):
    rows = enumerated(get_method(name), STUDENT, STUDENT)
    assert rows.loss == pytest.approx(0.0, abs=1e-15)
    assert np.abs(rows.gradient).max() < 1e-15


def test_the_topk_terms_do_not_vanish_when_student_and_teacher_agree():
    # With k < V the printed sum still pulls mass onto the top-k: P π_S − π_T 1[top-k] is not 0.
    assert np.abs(enumerated(get_method("fkl", fkl_top_k=K), STUDENT, STUDENT).mean).max() > 0.01
