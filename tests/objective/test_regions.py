"""The trust region, its gates, the entropy selections, and the draws behind the Bernoulli gate."""

import math

import numpy as np
import pytest
import torch

import reference
from reference import log_softmax, pair
from tropd import objective

RATIOS = [-math.inf, -800.0, -2.5, -2.0, -1.0, -1e-9, 0.0, 1e-9, 3.0, 800.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_trust_probability_equals_its_twin(dtype):
    ours = objective.trust_probability(torch.tensor(RATIOS, dtype=dtype))
    assert ours.dtype == dtype
    assert ours.tolist() == pytest.approx([reference.trust_probability(r) for r in RATIOS], abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_outlier_rate_is_total_variation(seed):
    student, teacher = map(log_softmax, pair(seed))
    trusted = objective.trust_probability(torch.tensor(teacher - student))
    rate = 1 - (torch.tensor(student).exp() * trusted).sum().item()
    assert rate == pytest.approx(reference.total_variation(student, teacher), abs=1e-14)


def test_a_student_equal_to_its_teacher_is_trusted_everywhere():
    assert objective.trust_probability(torch.zeros(5)).tolist() == [1.0] * 5


@pytest.mark.parametrize("gate", ["expected", "hard", "floor"])
@pytest.mark.parametrize("tau", [-2.0, 0.0, -math.inf])
def test_gates_without_draws_equal_their_twins(gate, tau):
    ours = objective.trust_weight(gate, torch.tensor(RATIOS, dtype=torch.float64), tau=tau)
    if gate == "floor":
        twin = [1.0 if r >= tau else 0.0 for r in RATIOS]
    else:
        twin = [reference.trust_weight(r, gate, threshold=tau) for r in RATIOS]
    assert ours.tolist() == pytest.approx(twin, abs=1e-15)


@pytest.mark.parametrize("uniform", [0.0, 0.1, math.exp(-1.0), 0.5, 1 - 2**-53])
def test_the_bernoulli_gate_equals_its_twin(uniform):
    ratios = torch.tensor(RATIOS, dtype=torch.float64)
    draws = torch.full_like(ratios, uniform)
    ours = objective.trust_weight("bernoulli", ratios, uniforms=draws)
    assert ours.tolist() == [reference.trust_weight(r, "bernoulli", uniform=uniform) for r in RATIOS]


def test_the_bernoulli_gate_accepts_with_the_trust_probability():
    # u on the midpoints of 1000 cells: the share accepted is P_trust to half a cell.
    cells = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for r in (-3.0, -1.0, -0.1, 0.0, 2.0):
        weight = objective.trust_weight("bernoulli", torch.full_like(cells, r), uniforms=cells)
        assert weight.mean().item() == pytest.approx(reference.trust_probability(r), abs=0.5001e-3)


def test_the_trust_region_carries_no_gradient():
    ratio = torch.tensor([-1.0, 1.0], requires_grad=True)
    for gate in ("open", "closed", "bernoulli", "expected", "hard", "floor"):
        weight = objective.trust_weight(gate, ratio, uniforms=torch.full((2,), 0.5), tau=-0.5)
        assert not weight.requires_grad, gate


def test_a_weight_takes_the_dtype_of_the_ratio_and_not_of_the_draws():
    ratio, draws = torch.zeros(3), torch.zeros(3, dtype=torch.float64)
    assert objective.trust_weight("bernoulli", ratio, uniforms=draws).dtype == torch.float32


@pytest.mark.parametrize(
    ("gate", "needed"),
    [
        ("bernoulli", "uniforms"),
        ("hard", "tau"),
        ("floor", "tau"),
        ("student_entropy", "selected"),
        ("teacher_entropy", "selected"),
        ("soft", "gate is 'soft'"),
    ],
)
def test_a_gate_says_what_it_lacks(gate, needed):
    with pytest.raises(ValueError, match=needed):
        objective.trust_weight(gate, torch.zeros(1))


def test_no_tokens_have_no_weights():
    nothing = torch.empty(0)
    for gate in ("open", "closed", "bernoulli", "expected", "hard", "floor"):
        assert objective.trust_weight(gate, nothing, uniforms=nothing, tau=-1.0).shape == (0,)


# The expected gate's influence function.


def test_under_the_expected_gate_no_outlier_weighs_more_than_one_over_e():
    ratio = torch.linspace(-50, 0, 20_001, dtype=torch.float64)
    influence = ratio * objective.trust_weight("expected", ratio)
    assert influence.min().item() >= -1 / math.e
    assert influence.min().item() == pytest.approx(-1 / math.e, abs=1e-6)
    assert ratio[influence.argmin()].item() == pytest.approx(-1.0, abs=2.5e-3)


# Entropies.


@pytest.mark.parametrize("share", [0.01, 0.07, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("num", [1, 2, 3, 5, 10, 100, 101, 1000])
def test_the_top_share_equals_its_twin(num, share):
    values = np.random.default_rng(num).random(num)
    threshold = objective.top_share_threshold(torch.tensor(values), share)
    assert (values >= threshold).tolist() == reference.highest_entropy_share(values, share)


def test_the_top_share_counts_whole_tokens():
    values = torch.arange(100.0)
    assert (values >= objective.top_share_threshold(values, 0.07)).sum() == 7  # 0.07 · 100 is 7.000000000000001
    assert (values[:5] >= objective.top_share_threshold(values[:5], 0.2)).tolist() == [False] * 4 + [True]


def test_tokens_that_tie_with_the_threshold_are_all_selected():
    values = torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0])
    assert (values >= objective.top_share_threshold(values, 0.2)).sum() == 3


def test_no_entropies_select_nothing():
    assert objective.top_share_threshold(torch.empty(0), 0.2) == math.inf


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match="share is"):
        objective.top_share_threshold(torch.zeros(3), share)


def test_a_shuffled_batch_selects_the_same_tokens():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert objective.top_share_threshold(values, 0.2) == objective.top_share_threshold(values[order], 0.2)


# Draws.


def test_a_draw_depends_on_its_address_alone():
    batch = objective.addressed_uniforms(3, 11, [0, 1, 2, 7], 20)
    alone = objective.addressed_uniforms(3, 11, [7], 20)
    shorter = objective.addressed_uniforms(3, 11, [7, 0], 5)
    assert torch.equal(batch[3], alone[0])
    assert torch.equal(batch[3, :5], shorter[0]) and torch.equal(batch[0, :5], shorter[1])


def test_every_part_of_the_address_changes_the_draws():
    base = objective.addressed_uniforms(0, 0, [0], 50)
    others = [
        objective.addressed_uniforms(1, 0, [0], 50),
        objective.addressed_uniforms(0, 1, [0], 50),
        objective.addressed_uniforms(0, 0, [1], 50),
        objective.addressed_uniforms(0, 0, [0], 50, stream=1),
    ]
    drawn = torch.cat([base, *others]).flatten()
    assert len(drawn.unique()) == 250  # neither equal nor shifted copies of one another


def test_draws_are_uniform_in_the_half_open_interval():
    draws = objective.addressed_uniforms(5, 2, range(100), 1000).flatten()
    assert draws.dtype == torch.float64 and draws.min() >= 0 and draws.max() < 1
    # 10^5 draws: the mean of u is within 4 standard errors, 4 · (1/√12)/√10^5 = 0.0037, and so are rows' means
    assert draws.mean().item() == pytest.approx(0.5, abs=0.0037)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.001)


def test_rows_are_independent_of_each_other():
    rows = objective.addressed_uniforms(5, 2, range(2), 10_000)
    assert abs(torch.corrcoef(rows)[0, 1].item()) < 0.04  # 4 standard errors of 1/√10^4


def test_drawing_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    objective.addressed_uniforms(1, 1, [1], 8)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_no_rows_and_no_length_are_fine():
    assert objective.addressed_uniforms(0, 0, [], 4).shape == (0, 4)
    assert objective.addressed_uniforms(0, 0, [1, 2], 0).shape == (2, 0)
