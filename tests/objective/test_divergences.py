"""Every divergence against its NumPy twin, forward and gradient; then the laws, and the edges by hand."""

import math

import numpy as np
import pytest
import torch

import reference
from reference import log_softmax, pair
from tropd import objective

SHAPES = [(1, 1), (1, 2), (3, 5), (2, 33)]
TRUNCATIONS = reference.TRUNCATIONS
# float32: unit roundoff 6e-8, sums of up to 33 terms no larger than 10. float64: 1e-16 times the same, generously.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])


def states(num: int, size: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [num, size] of students and teachers, rounded to `dtype` before either side reads them."""
    pairs = [pair(seed + n, size) for n in range(num)]
    student, teacher = (torch.tensor(np.array(logits), dtype=dtype) for logits in zip(*pairs, strict=True))
    return student.requires_grad_(True), teacher


def compare(function, value, gradient, num: int, size: int, dtype: torch.dtype) -> None:
    """`function(student logps, teacher logps)` [N] against the twin's value and gradient in the logits, row by row."""
    student, teacher = states(num, size, dtype)
    ours = function(student.log_softmax(-1), teacher.log_softmax(-1))
    assert ours.shape == (num,) and ours.dtype == dtype
    (ours_gradient,) = torch.autograd.grad(ours.sum(), student)
    tolerance = TOLERANCE[dtype]
    for n in range(num):
        logps = log_softmax(student[n].tolist()), log_softmax(teacher[n].tolist())
        assert ours[n].item() == pytest.approx(value(*logps), abs=tolerance)
        assert ours_gradient[n].tolist() == pytest.approx(gradient(*logps), abs=tolerance)


FULL = {
    "reverse_kl": (objective.reverse_kl, reference.reverse_kl, reference.reverse_kl_gradient),
    "forward_kl": (objective.forward_kl, reference.forward_kl, lambda s, t: np.exp(s) - np.exp(t)),
    "skew_forward": (
        objective.skew_forward_kl,
        reference.skew_forward_kl,
        reference.skew_forward_kl_gradient,
    ),
    "skew_reverse": (
        objective.skew_reverse_kl,
        reference.skew_reverse_kl,
        reference.skew_reverse_kl_gradient,
    ),
}


@both_dtypes
@pytest.mark.parametrize(("num", "size"), SHAPES)
@pytest.mark.parametrize("name", FULL)
def test_full_vocabulary_divergences_equal_their_twins(name, num, size, dtype):
    compare(*FULL[name], num, size, dtype)


@both_dtypes
@pytest.mark.parametrize(("num", "size"), SHAPES)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_generalized_jsd_equals_its_twin(beta, num, size, dtype):
    compare(
        lambda s, t: objective.generalized_jsd(s, t, beta),
        lambda s, t: reference.generalised_jsd(s, t, beta),
        lambda s, t: reference.jsd_gradient(s, t, beta),
        num,
        size,
        dtype,
    )


def on_topk(function, k: int):
    """A function of top-k log-probs as one of whole distributions; ids from the twin, so that ties agree."""

    def full(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor([reference.top_k(row.tolist(), k) for row in teacher])
        return function(student.gather(-1, ids), teacher.gather(-1, ids))

    return full


@both_dtypes
@pytest.mark.parametrize(("num", "size", "k"), [(1, 1, 1), (3, 5, 1), (3, 5, 3), (3, 5, 5), (2, 33, 16), (2, 33, 33)])
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_topk_forward_kl_equals_its_twin(truncation, num, size, k, dtype):
    compare(
        on_topk(lambda s, t: objective.topk_forward_kl(s, t, truncation), k),
        lambda s, t: reference.topk_forward_kl(s, t, k, truncation),
        lambda s, t: reference.topk_forward_kl_gradient(s, t, k, truncation),
        num,
        size,
        dtype,
    )


@both_dtypes
@pytest.mark.parametrize(("num", "size", "k"), [(1, 1, 1), (3, 5, 1), (3, 5, 3), (3, 5, 5)])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_direct_half_of_the_hybrid_jsd_equals_its_twin(beta, num, size, k, dtype):
    compare(
        on_topk(lambda s, t: objective.topk_jsd_teacher_part(s, t, beta), k),
        lambda s, t: reference.hybrid_jsd_topk_part(s, t, k, beta),
        lambda s, t: reference.hybrid_jsd_topk_gradient(s, t, k, beta),
        num,
        size,
        dtype,
    )


@both_dtypes
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_sampled_half_of_the_hybrid_jsd_equals_its_twin_and_is_detached(beta, dtype):
    student, teacher = states(1, 7, dtype)
    logps = student.log_softmax(-1)[0], teacher.log_softmax(-1)[0]
    advantage = objective.jsd_sampled_advantage(*logps, beta)
    assert not advantage.requires_grad
    twin_logps = log_softmax(student[0].tolist()), log_softmax(teacher[0].tolist())
    twin = [-reference.hybrid_jsd_sampled_part(*twin_logps, x, beta) for x in range(7)]
    assert advantage.tolist() == pytest.approx(twin, abs=TOLERANCE[dtype])


@both_dtypes
@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimators_equal_their_twins(name, dtype):
    student = torch.tensor([-3.0, -0.5, -0.25, 0.0], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([-0.5, -4.0, -0.25, -1e-3], dtype=dtype)
    ours = getattr(objective, name)(student, teacher)
    ratios = (teacher - student).tolist()
    twin = [getattr(reference, name)(r) for r in ratios]
    assert ours.tolist() == pytest.approx(twin, abs=TOLERANCE[dtype])
    # d/d log π_S, with r = log π_T − log π_S: k1 is −r, k2 is r²/2, k3 is e^r − 1 − r.
    slopes = {"k1": lambda r: 1.0, "k2": lambda r: -r, "k3": lambda r: 1.0 - math.exp(r)}
    (gradient,) = torch.autograd.grad(ours.sum(), student)
    assert gradient.tolist() == pytest.approx([slopes[name](r) for r in ratios], abs=TOLERANCE[dtype])


# Laws.


@pytest.fixture
def one_state():
    student, teacher = states(1, 6, torch.float64, seed=50)
    return student, student.log_softmax(-1)[0], teacher.log_softmax(-1)[0]


def expected_direct_gradient(estimator, student, student_logp, teacher_logp) -> torch.Tensor:
    """Σ_x π_S(x) ∇estimator(x): the sampling probability is not differentiated."""
    mean = (student_logp.detach().exp() * estimator(student_logp, teacher_logp)).sum()
    return torch.autograd.grad(mean, student, retain_graph=True)[0][0]


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_average_to_the_exact_reverse_kl(name, one_state):
    _, student, teacher = one_state
    mean = (student.exp() * getattr(objective, name)(student, teacher)).sum()
    assert mean.item() == pytest.approx(objective.reverse_kl(student[None], teacher[None]).item(), abs=1e-14)


def test_k1_differentiated_directly_teaches_nothing(one_state):
    gradient = expected_direct_gradient(objective.k1, *one_state)
    assert gradient.tolist() == pytest.approx([0.0] * 6, abs=1e-15)


def test_k2_differentiated_directly_is_reverse_kl(one_state):
    gradient = expected_direct_gradient(objective.k2, *one_state)
    exact = torch.autograd.grad(objective.reverse_kl(one_state[1][None], one_state[2][None]), one_state[0])[0]
    assert gradient.tolist() == pytest.approx(exact[0].tolist(), abs=1e-14)


def test_k3_differentiated_directly_is_forward_kl(one_state):
    gradient = expected_direct_gradient(objective.k3, *one_state)
    exact = torch.autograd.grad(objective.forward_kl(one_state[1][None], one_state[2][None]), one_state[0])[0]
    assert gradient.tolist() == pytest.approx(exact[0].tolist(), abs=1e-14)


def test_reverse_means_student_first_and_forward_means_teacher_first():
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    # ½ log(.5/.9) + ½ log(.5/.1) = 0.5108 and .9 log(.9/.5) + .1 log(.1/.5) = 0.3681
    assert objective.reverse_kl(student, teacher).item() == pytest.approx(0.5108, abs=5e-5)
    assert objective.forward_kl(student, teacher).item() == pytest.approx(0.3681, abs=5e-5)


DIVERGENCES = {
    "reverse": objective.reverse_kl,
    "forward": objective.forward_kl,
    "jsd": lambda s, t: objective.generalized_jsd(s, t, 0.3),
    "skew forward": objective.skew_forward_kl,
    "skew reverse": objective.skew_reverse_kl,
    "top-k, renormalised": on_topk(lambda s, t: objective.topk_forward_kl(s, t, "teacher_renorm"), 2),
    "top-k, tail": on_topk(lambda s, t: objective.topk_forward_kl(s, t, "tail"), 2),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_is_never_negative(name):
    student, teacher = states(50, 5, torch.float64, seed=100)
    assert (DIVERGENCES[name](student.log_softmax(-1), teacher.log_softmax(-1)) >= 0).all()


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "top-k, renormalised"])
def test_a_divergence_from_itself_is_zero(name):
    student, _ = states(5, 5, torch.float64)
    logps = student.log_softmax(-1)
    assert DIVERGENCES[name](logps, logps.detach()).tolist() == pytest.approx([0.0] * 5, abs=1e-15)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_shifting_all_logits_changes_nothing(name):
    student, teacher = states(5, 5, torch.float64)
    plain = DIVERGENCES[name](student.log_softmax(-1), teacher.log_softmax(-1))
    shifted = DIVERGENCES[name]((student + 30).log_softmax(-1), (teacher - 7).log_softmax(-1))
    assert shifted.tolist() == pytest.approx(plain.tolist(), abs=1e-13)


def test_jsd_at_one_half_is_symmetric():
    student, teacher = (logits.log_softmax(-1) for logits in states(5, 5, torch.float64))
    there = objective.generalized_jsd(student, teacher, 0.5)
    assert there.tolist() == pytest.approx(objective.generalized_jsd(teacher, student, 0.5).tolist(), abs=1e-15)
    assert (there <= math.log(2)).all()


def test_topk_forward_kl_tends_to_the_full_forward_kl_as_k_grows():
    student, teacher = (logits.log_softmax(-1) for logits in states(10, 9, torch.float64))
    exact = objective.forward_kl(student, teacher)
    previous = torch.zeros_like(exact)
    for k in range(1, 10):
        coarse = on_topk(lambda s, t: objective.topk_forward_kl(s, t, "tail"), k)(student, teacher)
        assert (coarse >= previous - 1e-14).all() and (coarse <= exact + 1e-14).all()
        previous = coarse
    assert previous.tolist() == pytest.approx(exact.tolist(), abs=1e-14)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_every_truncation_is_exact_at_full_k(truncation):
    student, teacher = (logits.log_softmax(-1) for logits in states(10, 9, torch.float64))
    full = objective.topk_forward_kl(student, teacher, truncation)
    assert full.tolist() == pytest.approx(objective.forward_kl(student, teacher).tolist(), abs=1e-13)


def test_the_direct_gradient_is_bounded_where_the_value_diverges():
    # The teacher's top-2 holds 0.9; the student has exp(−800) there, which is 0 even in float64.
    teacher = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[-800.0, -800.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = objective.topk_forward_kl(student.log_softmax(-1)[:, :2], teacher[:, :2])
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.item() > 700
    # P π_S − π_T 1[top-k] with π_S = (0, 0, 1) and P = 0.9: L1 norm 1.8 = 2 P, the bound itself
    assert gradient[0].tolist() == pytest.approx([-0.6, -0.3, 0.9], abs=1e-15)


@pytest.mark.parametrize("k", range(1, 6))
def test_the_topk_sum_is_at_least_p_log_p_over_q(k):
    student, teacher = (logits.log_softmax(-1) for logits in states(50, 5, torch.float64))
    value = on_topk(objective.topk_forward_kl, k)(student, teacher)
    mass_teacher = on_topk(lambda s, t: t.exp().sum(-1), k)(student, teacher)
    mass_student = on_topk(lambda s, t: s.exp().sum(-1), k)(student, teacher)
    assert (value >= mass_teacher * (mass_teacher / mass_student).log() - 1e-14).all()


def test_teacher_renorm_has_the_printed_gradient_divided_by_the_teachers_mass():
    student, teacher = states(1, 6, torch.float64)
    teacher = teacher.log_softmax(-1)

    def gradient(truncation: str) -> torch.Tensor:
        value = on_topk(lambda s, t: objective.topk_forward_kl(s, t, truncation), 3)
        return torch.autograd.grad(value(student.log_softmax(-1), teacher).sum(), student)[0]

    mass = on_topk(lambda s, t: t.exp().sum(-1), 3)(student, teacher).item()
    assert (gradient("teacher_renorm") * mass).tolist()[0] == pytest.approx(gradient("none").tolist()[0], abs=1e-15)


def test_the_printed_sum_at_k_one_still_teaches():
    # Renormalising the student over the top-k would make this loss identically zero.
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    value = objective.topk_forward_kl(student.log_softmax(-1)[:, :1], torch.tensor([[0.5]], dtype=torch.float64).log())
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.item() == pytest.approx(0.5 * math.log(1.5))
    assert gradient[0].tolist() == pytest.approx([-1 / 3, 1 / 6, 1 / 6])  # ½ · (⅓, ⅓, ⅓) − (½, 0, 0)


# Edges.

IMPOSSIBLE = [0.0, 1.0, -math.inf, 0.5]
CERTAIN = [0.0, -math.inf, -math.inf, -math.inf]


@both_dtypes
@pytest.mark.parametrize("teacher_logits", [IMPOSSIBLE, CERTAIN], ids=["impossible", "certain"])
@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_teacher_without_mass_on_some_tokens_equals_its_twin(k, truncation, teacher_logits, dtype):
    student = torch.tensor([[0.3, -1.0, 0.2, 0.9]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([teacher_logits], dtype=dtype).log_softmax(-1)
    ours = on_topk(lambda s, t: objective.topk_forward_kl(s, t, truncation), k)(student.log_softmax(-1), teacher)
    (gradient,) = torch.autograd.grad(ours.sum(), student)
    logps = log_softmax(student[0].tolist()), log_softmax(teacher_logits)
    tolerance = TOLERANCE[dtype]
    assert ours.item() == pytest.approx(reference.topk_forward_kl(*logps, k, truncation), abs=tolerance)
    twin = reference.topk_forward_kl_gradient(*logps, k, truncation)
    assert gradient[0].tolist() == pytest.approx(twin, abs=tolerance)


@pytest.mark.parametrize("name", ["forward", "jsd", "skew forward", "skew reverse"])
def test_probability_zero_and_one_leave_values_and_gradients_finite(name):
    student = torch.tensor([[0.0, -math.inf, -math.inf, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, -math.inf, -math.inf, 1.0]], dtype=torch.float64)
    student.requires_grad_(True)
    value = DIVERGENCES[name](student.log_softmax(-1), teacher.log_softmax(-1))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    assert gradient[0].tolist() == pytest.approx([0.0] * 4, abs=1e-15)


def test_reverse_kl_to_a_teacher_without_support_is_infinite():
    student = torch.zeros(1, 4, dtype=torch.float64).log_softmax(-1)
    assert objective.reverse_kl(student, torch.tensor([IMPOSSIBLE]).double().log_softmax(-1)).item() == math.inf


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_tokens_give_no_values(name):
    nothing = torch.empty(0, 5)
    function = DIVERGENCES[name] if "top-k" not in name else objective.topk_forward_kl
    assert function(nothing, nothing).shape == (0,)


def test_an_unknown_truncation_is_refused_by_name():
    with pytest.raises(ValueError, match="renorm"):
        objective.topk_forward_kl(torch.zeros(1, 1), torch.zeros(1, 1), "renorm")


def test_a_mixture_of_weight_zero_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        objective.skew_forward_kl(torch.zeros(1, 1), torch.zeros(1, 1), alpha=0.0)


def tail_gradient(rest: float, dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Ours and the twin's, where the student has all but `rest` of its mass on the teacher's top-2 of 3."""
    teacher = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log().to(dtype)
    student = torch.tensor([[0.6, 0.4 - rest, rest]], dtype=torch.float64).log().to(dtype).requires_grad_(True)
    value = objective.topk_forward_kl(student.log_softmax(-1)[:, :2], teacher[:, :2], "tail")
    (gradient,) = torch.autograd.grad(value.sum(), student)
    logps = log_softmax(student[0].tolist()), log_softmax(teacher[0].tolist())
    return gradient[0].tolist(), reference.topk_forward_kl_gradient(*logps, 2, "tail").tolist()


@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9, 1e-12])
def test_the_tail_bucket_still_pulls_where_the_student_has_almost_left_it(rest):
    # 1 − Q is the difference of two numbers near 1, so its relative error is 1e-16 / rest.
    ours, twin = tail_gradient(rest, torch.float64)
    assert twin[2] == pytest.approx(rest - 0.2, abs=1e-12)
    assert ours == pytest.approx(twin, abs=1e-15 / rest + 1e-12)


def test_in_float32_the_tail_bucket_is_known_to_its_rounding():
    ours, twin = tail_gradient(1e-3, torch.float32)
    assert ours == pytest.approx(twin, abs=1e-4)  # 6e-8 / 1e-3, and a few roundings
    # Below that, the bucket of the student rounds away: bounded, and without the pull on the tokens it left.
    ours, _ = tail_gradient(1e-9, torch.float32)
    assert ours == pytest.approx([0.8 * 0.6 - 0.5, 0.8 * 0.4 - 0.3, 0.0], abs=1e-6)
