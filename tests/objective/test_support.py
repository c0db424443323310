"""Reverse KL on a support: what ResOPD and its clipped tail estimate, what the clip costs, how long their draws are.

Every sampled token is enumerated. A support is any set of tokens here; a method's is the teacher's top-k.
"""

import itertools
import math

import numpy as np
import pytest
import torch

import reference
from objective.test_expected_gradients import STUDENT, TEACHER, Rows, V, enumerated
from reference import Array, differences, log_softmax, pair
from tropd import objective
from tropd.objective import Head, Method, TokenSignals, get_method

SUPPORTS = [chosen for size in range(V + 1) for chosen in itertools.combinations(range(V), size)]
FAR = [pair(seed, spread=6.0) for seed in range(20, 26)]


def on_support(method: Method, kept: tuple[int, ...], student: Array = STUDENT, teacher: Array = TEACHER) -> Rows:
    """The loss and gradient of every token that could be drawn, with `kept` in the place of the teacher's top-k."""
    student_logp, teacher_logp = (torch.tensor(log_softmax(logits)) for logits in (student, teacher))
    tokens, ids = torch.arange(V), torch.tensor(kept, dtype=torch.long).expand(V, -1)
    inside = objective.in_support(tokens, ids, teacher_logp[ids]).double()
    signals = TokenSignals(student_logp, teacher_logp, inside, 1 - inside, torch.zeros(V).double())
    states = torch.tensor(student).repeat(V, 1).requires_grad_(True)
    term = objective.topk_term(method, signals, tokens, ids, teacher_logp[ids])
    logp, values, _ = objective.student_terms(states, Head(torch.eye(V).double()), tokens, term)
    losses = objective.token_losses(method, signals, logp, values)
    loss = losses.trust + losses.outlier
    (gradient,) = torch.autograd.grad(loss.sum(), states)
    return Rows(student_logp.exp().numpy(), gradient.numpy(), loss.detach().numpy())


def clipped_kl(student_logp: Array, teacher_logp: Array, kept, tau: float) -> float:
    """D_τ: p log(p/q) − p + q on the support, and outside of it the same with its slope, log(p/q), held at −τ."""
    total = []
    for v, (s, t) in enumerate(zip(student_logp, teacher_logp, strict=True)):
        p, q = math.exp(s), math.exp(t)
        if v in kept or s - t <= -tau:
            total.append(p * (s - t) - p + q)
        else:
            total.append(-tau * p - (math.exp(-tau) - 1) * q)
    return math.fsum(total)


def excess(student_logp: Array, teacher_logp: Array, kept, tau: float) -> float:
    """E[1[x ∉ S] (τ − r)₊]: how far the sampled log ratios of the tail lie below τ."""
    beyond = np.exp(student_logp) * np.maximum(tau - (teacher_logp - student_logp), 0.0)
    return math.fsum(beyond[v] for v in range(V) if v not in kept)


# What is estimated.


@pytest.mark.parametrize("kept", SUPPORTS, ids=str)
def test_resopd_averages_to_the_gradient_of_reverse_kl_whatever_the_support(kept):
    rows, exact = on_support(get_method("resopd"), kept), [log_softmax(STUDENT), log_softmax(TEACHER)]
    assert rows.mean == pytest.approx(reference.reverse_kl_gradient(*exact), abs=1e-13)
    assert rows.probability @ rows.loss == pytest.approx(reference.reverse_kl(*exact), abs=1e-13)


def test_with_every_token_in_its_support_it_draws_nothing_and_without_any_it_is_k1():
    exact = reference.reverse_kl_gradient(log_softmax(STUDENT), log_softmax(TEACHER))
    for gradient in on_support(get_method("resopd"), tuple(range(V))).gradient:
        assert gradient == pytest.approx(exact, abs=1e-14)
    k1 = enumerated(get_method("opd"))
    assert on_support(get_method("resopd"), ()).gradient == pytest.approx(k1.gradient, abs=1e-14)


@pytest.mark.parametrize("tau", [-0.3, -1.0, -2.0])
@pytest.mark.parametrize("kept", SUPPORTS[::5], ids=str)
def test_the_clipped_tail_averages_to_the_gradient_of_its_own_divergence(kept, tau):
    method = get_method("tropd_support", outlier_tau=tau)
    for student, teacher in [(STUDENT, TEACHER), *FAR[:3]]:
        teacher_logp = log_softmax(teacher)
        numeric = differences(
            lambda z, q=teacher_logp: clipped_kl(log_softmax(z), q, kept, tau), np.array(student, dtype=float)
        )
        assert on_support(method, kept, student, teacher).mean == pytest.approx(numeric, abs=1e-7)


def test_that_divergence_is_zero_for_equals_alone_convex_and_at_most_reverse_kl():
    teacher = log_softmax(TEACHER)
    assert clipped_kl(teacher, teacher, (1, 2), -1.0) == pytest.approx(0.0, abs=1e-15)
    for (one, _), (other, _) in itertools.pairwise(FAR):
        ends = [log_softmax(logits) for logits in (one, other)]
        middle = np.log(0.5 * np.exp(ends[0]) + 0.5 * np.exp(ends[1]))
        found = [clipped_kl(logp, teacher, (1, 2), -1.0) for logp in (*ends, middle)]
        assert found[2] <= (found[0] + found[1]) / 2
        for logp, value in zip(ends, found[:2], strict=True):
            kl = reference.reverse_kl(logp, teacher)
            assert 0 < value < kl + 1e-12 < value + excess(logp, teacher, (1, 2), -1.0) + 2e-12


@pytest.mark.parametrize("kept", SUPPORTS[::5], ids=str)
def test_the_bias_is_at_most_twice_what_the_tails_log_ratios_exceed_the_clip_by(kept):
    biased = 0
    for student, teacher in FAR:
        logps = log_softmax(student), log_softmax(teacher)
        exact = reference.reverse_kl_gradient(*logps)
        for tau in (-0.3, -1.0, -2.0):
            bias = on_support(get_method("tropd_support", outlier_tau=tau), kept, student, teacher).mean - exact
            bound = 2 * excess(*logps, kept, tau)
            assert np.abs(bias).sum() <= bound + 1e-12
            biased += np.abs(bias).sum() > 1e-3
    assert (biased > 0) == (len(kept) < V), "the clip binds somewhere, unless nothing is outside"


def test_the_clip_does_nothing_where_the_tails_log_ratios_are_mild():
    logps = log_softmax(STUDENT), log_softmax(TEACHER)
    ratios = (logps[1] - logps[0]).tolist()
    kept = tuple(v for v in range(V) if ratios[v] < -0.5)
    assert kept and min(ratios) < -0.6, "it would bind, if these were outside"
    mild = on_support(get_method("tropd_support", outlier_tau=-0.5), kept)
    assert mild.gradient == pytest.approx(on_support(get_method("resopd"), kept).gradient, abs=1e-15)


# How long a drawn gradient is.


def sampled_part(tau: float, kept: tuple[int, ...], student: Array, teacher: Array) -> Rows:
    """Of the clipped tail, less the bucket's own gradient and what is exact on the support."""
    method = get_method("tropd_support", outlier_tau=tau)
    rows = on_support(method, kept, student, teacher)
    without = on_support(get_method("tropd_support", outlier="mask"), kept, student, teacher)
    student_logp, teacher_logp = log_softmax(student), log_softmax(teacher)
    outside = np.array([v not in kept for v in range(V)])
    p, q = np.exp(student_logp), np.exp(teacher_logp)
    tail = p[outside].sum()
    ratio = math.log(tail / q[outside].sum())
    bucket = (min(ratio, -tau) - ratio) * (p * outside - p * tail)  # `mask` does not clip
    return Rows(rows.probability, rows.gradient - without.gradient - bucket, rows.loss)


@pytest.mark.parametrize("tau", [-0.5, -2.0])
@pytest.mark.parametrize("spread", [1.0, 6.0, 40.0])
def test_what_is_sampled_has_a_bounded_mean_square_whatever_the_teacher(tau, spread):
    """8 (τ² T + 4/e² U), T and U what student and teacher have outside."""
    kept, longest = (0, 1), 0.0
    for seed in range(12):
        student, teacher = pair(seed, spread=spread)
        tails = [
            np.exp(log_softmax(logits)).sum(where=[v not in kept for v in range(V)]) for logits in (student, teacher)
        ]
        bound = 8 * (tau**2 * tails[0] + 4 / math.e**2 * tails[1])
        found = sampled_part(tau, kept, student, teacher).second_moment
        assert found <= bound + 1e-9
        longest = max(longest, found)
    assert longest > 0.1


def test_k1_and_resopd_have_no_such_bound():
    student, moments = np.zeros(V), []
    for excluded in (10.0, 100.0):
        teacher = np.array([0.0] * (V - 1) + [-excluded])
        pairs = [on_support(get_method(name), (0, 1), student, teacher) for name in ("tropd_support", "resopd")]
        moments.append([rows.second_moment for rows in pairs])
        moments[-1].append(enumerated(get_method("opd"), student, teacher).second_moment)
    growth = np.array(moments[1]) / moments[0]
    assert growth[0] < 1.1 and min(growth[1:]) > 50


def test_on_the_support_it_is_as_long_as_reverse_kl_is_which_has_no_bound():
    """A teacher so sure that the 2nd of its top-2 is excluded: the clip is for what is outside."""
    student = np.zeros(V)
    lengths = []
    for sure in (10.0, 100.0):
        teacher = np.array([sure, 0.0, *[-1.0] * (V - 2)])
        rows = on_support(get_method("tropd_support"), (0, 1), student, teacher)
        lengths.append(np.linalg.norm(rows.gradient, axis=1).min())
    assert lengths[1] > 5 * lengths[0]


def test_near_the_teacher_it_draws_shorter_gradients_than_k1_but_not_in_every_state():
    k1, moments = [], []
    for seed in range(20):
        student, other = pair(seed)
        pairs = (student, student + 0.3 * other)
        k1.append(enumerated(get_method("opd"), *pairs).second_moment)
        moments.append([enumerated(get_method("resopd", fkl_top_k=k), *pairs).second_moment for k in range(1, V)])
    of_k = np.mean(moments, axis=0)
    assert np.all(np.diff([np.mean(k1), *of_k]) < 0), "the shorter the more the support holds, in the mean"
    ratios = np.array(moments)[:, 0] / k1
    assert 1 < ratios.max() < 1.1, "one token of support does not always pay"


# Limits that must coincide.


@pytest.mark.parametrize("k", [1, 3, V, 16])
def test_without_its_clip_the_candidate_is_resopd(k):
    free = enumerated(get_method("tropd_support", outlier_tau=-math.inf, fkl_top_k=k))
    assert free.gradient == pytest.approx(enumerated(get_method("resopd", fkl_top_k=k)).gradient, abs=1e-15)


def test_with_every_token_in_its_top_k_the_candidate_is_gkd():
    for student, teacher in [(STUDENT, TEACHER), *FAR]:
        candidate, gkd = (enumerated(get_method(name), student, teacher) for name in ("tropd_support", "gkd"))
        assert candidate.gradient == pytest.approx(gkd.gradient, abs=1e-11)
        assert candidate.loss == pytest.approx(gkd.loss, abs=1e-11)


def test_the_union_of_both_supports_is_resopd_on_that_support():
    for student, teacher in [(STUDENT, TEACHER), *FAR]:
        logps = log_softmax(student), log_softmax(teacher)
        kept = tuple(sorted({*reference.top_k(logps[0], 2), *reference.top_k(logps[1], 2)}))
        for name, changes in (("resopd", {}), ("tropd_support", {"outlier_tau": -0.5})):
            union = enumerated(get_method(name, support="union", fkl_top_k=2, **changes), student, teacher)
            alone = on_support(get_method(name, **changes), kept, student, teacher)
            # U is what S leaves of 1, added up in another order.
            assert union.gradient == pytest.approx(alone.gradient, abs=1e-8)
            assert union.loss == pytest.approx(alone.loss, abs=1e-8)


def test_in_later_updates_the_union_has_the_importance_ratio_of_k1():
    """The sampled token is outside of both top-1: it adds −r π_S/π_old, or PPO's clip of it, and takes off log(T/U)."""
    student, teacher = (torch.tensor(probs)[None].log() for probs in ([0.5, 0.3, 0.2], [0.2, 0.7, 0.1]))
    rollout, one, none = torch.tensor([0.1]).log(), torch.ones(1), torch.zeros(1)
    signals = TokenSignals(rollout, rollout + 1.0, one, none, none)

    def value(**changes) -> float:
        method = get_method("resopd", support="union", fkl_top_k=1, **changes)
        term = objective.full_term(method, signals, torch.tensor([0]), teacher, Head(torch.eye(3)), torch.tensor([2]))
        return term(student, slice(0, 1))[0].item()

    alone, bucket = value(outlier="mask"), math.log(0.2 / 0.1)
    assert value() - alone == pytest.approx(-2.0 - bucket, abs=1e-6)
    assert value(ratio_clip=0.5) - alone == pytest.approx(-1.5 - bucket, abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, V])
def test_reverse_kl_on_rejected_tokens_is_the_support_without_its_samples(k):
    closed = enumerated(get_method("fkl", outlier="rkl_direct", outlier_tau=-math.inf, fkl_top_k=k))
    bucket = enumerated(get_method("resopd", outlier="mask", fkl_top_k=k))
    assert closed.gradient == pytest.approx(bucket.gradient, abs=1e-15)


def test_a_gate_inside_with_every_token_trusted_is_opd():
    trusted = get_method("fkl_outlier", gate="hard", outlier="rkl_direct", outlier_tau=-math.inf)
    assert enumerated(trusted).gradient == pytest.approx(enumerated(get_method("opd")).gradient, abs=1e-15)


@pytest.mark.parametrize("changes", [{}, {"baseline": "top_k", "fkl_top_k": 2}], ids=str)
def test_a_baseline_keeps_the_expectation_of_k1(changes):
    vopd, opd = enumerated(get_method("vopd", **changes)), enumerated(get_method("opd"))
    assert vopd.mean == pytest.approx(opd.mean, abs=1e-14)
    assert np.abs(vopd.gradient - opd.gradient).max() > 0.01


def test_the_mixture_with_the_teacher_alone_is_opd_and_is_bounded_otherwise():
    opd = enumerated(get_method("opd"))
    assert enumerated(get_method("mixture_opd", advantage_alpha=1.0)).gradient == pytest.approx(opd.gradient, abs=1e-15)
    least = objective.sampled_advantage("mixture", torch.zeros(1), torch.tensor([-1e4]), 0.2)
    assert least.item() == pytest.approx(math.log(0.8))


def test_the_sign_of_r_is_the_gradient_of_total_variation():
    teacher = log_softmax(TEACHER)
    numeric = differences(lambda z: 2 * reference.total_variation(log_softmax(z), teacher), STUDENT)
    assert enumerated(get_method("tv_opd")).mean == pytest.approx(numeric, abs=1e-7)


def test_powers_of_probabilities_are_bounded():
    values = objective.sampled_advantage("power", torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0]), 5.0)
    assert values.tolist() == [-1.0, 1.0]


# What a teacher gives no probability.


def test_an_entry_of_the_top_k_without_probability_is_outside():
    teacher = TEACHER.copy()
    teacher[2:] = -math.inf  # two tokens are possible, and a top-4 is asked for
    student_logp, teacher_logp = (torch.tensor(log_softmax(logits)) for logits in (STUDENT, teacher))
    ids = teacher_logp.topk(4).indices.expand(V, -1)
    inside = objective.in_support(torch.arange(V), ids, teacher_logp[ids])
    assert inside.tolist() == [True, True, False, False, False, False]
    finite = teacher_logp.clamp_min(-50.0)  # a server's number for a token that it does not list
    signals = TokenSignals(student_logp, finite, inside.double(), (~inside).double(), torch.zeros(V).double())
    states = torch.tensor(STUDENT).repeat(V, 1).requires_grad_(True)
    term = objective.topk_term(get_method("tropd_support"), signals, torch.arange(V), ids, teacher_logp[ids])
    logp, values, mass = objective.student_terms(states, Head(torch.eye(V).double()), torch.arange(V), term)
    losses = objective.token_losses(get_method("tropd_support"), signals, logp, values)
    (gradient,) = torch.autograd.grad((losses.trust + losses.outlier).sum(), states)
    assert mass.numpy() == pytest.approx(student_logp[:2].exp().sum().item())
    p = student_logp.exp().numpy()
    slope = np.array([*(student_logp - teacher_logp)[:2].tolist(), *[2.0] * 4])  # held at −τ where q is 0
    assert p @ gradient.numpy() == pytest.approx(p * (slope - p @ slope), abs=1e-12)


def test_parts_that_go_together_are_asked_for_together():
    for changes in ({"gate": "support"}, {"trust": "rkl_direct"}):
        with pytest.raises(ValueError, match="Set both, or neither"):
            objective.register_method(Method(**{"name": "half", "summary": "", "source": "", "gate": "open"} | changes))
