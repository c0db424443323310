"""Methods that must coincide in a limit, and batches that must not care how they are laid out: values and gradients."""

import math

import pytest
import torch

from tropd import objective
from tropd.objective import get_method

NUM = 12
OPEN = {"gate": "hard", "outlier_tau": -math.inf}


def value_and_gradients(batch, method, selected=None, reduction="shared"):
    loss = batch.loss(method, selected, reduction)
    return [loss, *torch.autograd.grad(loss, (batch.hidden, batch.head.weight))]


def assert_equal(ours, theirs, tolerance=1e-14):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["tropd", "tropd_mask"])
def test_an_open_gate_without_guidance_is_opd(make_batch, name):
    batch = make_batch(NUM)
    opened = get_method(name, guidance_schedule="none", **OPEN)
    assert_equal(value_and_gradients(batch, opened), value_and_gradients(batch, get_method("opd")))


@pytest.mark.parametrize("name", ["fkl_outlier", "mask_outlier", "reopold", "aopd"])
def test_an_open_gate_is_opd(make_batch, name):
    batch = make_batch(NUM)
    changes = OPEN if name == "fkl_outlier" else {"outlier_tau": -math.inf}
    assert_equal(value_and_gradients(batch, get_method(name, **changes)), value_and_gradients(batch, get_method("opd")))


def test_a_clip_without_floor_and_guidance_is_opd(make_batch):
    batch = make_batch(NUM)
    clip = get_method("tropd_clip", outlier_tau=-math.inf, guidance_schedule="none")
    assert_equal(value_and_gradients(batch, clip), value_and_gradients(batch, get_method("opd")))


def test_eopd_with_an_infinite_threshold_is_opd(make_batch):
    batch = make_batch(NUM)
    eopd = get_method("eopd", teacher_entropy_tau=math.inf)
    certain = objective.entropy_of(batch.teacher_logps) <= eopd.teacher_entropy_tau
    ours = value_and_gradients(batch, eopd, certain)
    assert_equal(ours, value_and_gradients(batch, get_method("opd")))


def test_reopold_without_floor_is_opd_in_phase_one(make_batch):
    batch = make_batch(NUM)
    reopold = get_method("reopold_2stage", outlier_tau=-math.inf)
    ours = value_and_gradients(batch, reopold.stage(0.0), reduction=reopold.reduction)
    assert_equal(ours, value_and_gradients(batch, get_method("opd")))


def test_reopold_without_floor_on_every_token_is_opd_in_phase_two(make_batch):
    batch = make_batch(NUM)
    second = get_method("reopold_2stage", advantage_floor=-math.inf, entropy_share=1.0).stage(1.0)
    _, entropy = objective.sampled_logps(batch.hidden, batch.head, batch.tokens)
    selected = entropy >= objective.top_share_threshold(entropy, second.entropy_share)
    ours = value_and_gradients(batch, second, selected, second.reduction)
    assert_equal(ours, value_and_gradients(batch, get_method("opd")))


def test_entropy_opd_on_every_token_is_opd(make_batch):
    batch = make_batch(NUM)
    ours = value_and_gradients(batch, get_method("entropy_opd", entropy_share=1.0), torch.ones(NUM, dtype=torch.bool))
    assert_equal(ours, value_and_gradients(batch, get_method("opd")))


def test_tropd_without_guidance_is_fkl_outlier(make_batch):
    batch = make_batch(NUM)
    ours = value_and_gradients(batch, get_method("tropd", guidance_schedule="none"))
    assert_equal(ours, value_and_gradients(batch, get_method("fkl_outlier")))


def test_aopd_is_tropd_behind_a_hard_gate_at_zero(make_batch):
    batch = make_batch(NUM)
    ours = value_and_gradients(batch, get_method("fkl_outlier", gate="hard", outlier_tau=0.0))
    assert_equal(ours, value_and_gradients(batch, get_method("aopd")))


def test_a_gate_that_trusts_no_token_is_full_forward_kl(make_batch):
    batch = make_batch(NUM)
    ours = value_and_gradients(batch, get_method("fkl_outlier", gate="hard", outlier_tau=1e300))
    assert_equal(ours, value_and_gradients(batch, get_method("fkl")))


def test_a_batch_of_nothing_but_prefix_is_beta_times_nll(make_batch):
    batch = make_batch(NUM, num_guidance=NUM)
    logp, _ = objective.sampled_logps(batch.hidden, batch.head, batch.tokens)
    assert batch.loss(get_method("tropd")).item() == pytest.approx(-0.001 * logp.mean().item(), abs=1e-16)


# Layout.

ALL = [name for name, method in objective.METHODS.items() if not method.needs_full_teacher]  # which keeps states


def selection(batch, name):
    """Some answer of the entropy gates that depends on the token alone."""
    return batch.tokens % 2 == 0 if get_method(name).gate.endswith("entropy") else None


@pytest.mark.parametrize("name", ALL)
def test_masking_equals_slicing(make_batch, name):
    batch, method = make_batch(NUM, num_guidance=3), get_method(name)
    kept = torch.tensor([0, 2, 3, 5, 6, 7, 11])
    signals = batch.signals(method, selection(batch, name))
    mask = torch.zeros(NUM).double()
    mask[kept] = 1.0
    masked = objective.TokenSignals(
        signals.rollout_logp,
        signals.teacher_logp,
        signals.trust_weight * mask,
        signals.outlier_weight * mask,
        signals.guidance_mask * mask,
    )
    counts = objective.RegionCounts(*objective.region_counts(masked).tolist())
    loss = objective.reduce_losses(batch.losses(method, masked), counts)
    gradient, weight_gradient = torch.autograd.grad(loss, (batch.hidden, batch.head.weight))
    few = batch.rows(kept)
    sliced = value_and_gradients(few, method, selection(few, name))
    assert_equal([loss, gradient[kept], weight_gradient], sliced)
    dropped = [n for n in range(NUM) if n not in kept]
    assert gradient[dropped].abs().max() == 0


@pytest.mark.parametrize(("cut", "reduction"), [((6, 6), "shared"), ((1, 11), "per_region")])
@pytest.mark.parametrize("name", ALL)
def test_micro_batches_give_the_loss_and_gradient_of_the_whole(make_batch, name, cut, reduction):
    batch, method = make_batch(NUM, num_guidance=3), get_method(name)
    signals = batch.signals(method, selection(batch, name))
    counts = objective.RegionCounts(*objective.region_counts(signals).tolist())
    whole = value_and_gradients(batch, method, selection(batch, name), reduction)
    loss, weight_gradient = torch.zeros(()).double(), torch.zeros_like(batch.head.weight)
    for rows in (slice(0, cut[0]), slice(cut[0], NUM)):
        part = batch.rows(rows)
        piece = objective.reduce_losses(
            part.losses(method, part.signals(method, selection(part, name))), counts, reduction
        )
        loss, weight_gradient = loss + piece, weight_gradient + torch.autograd.grad(piece, batch.head.weight)[0]
    assert_equal([loss, weight_gradient], [whole[0], whole[2]])


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_tokens_does_not_matter(make_batch, name):
    batch, method = make_batch(NUM, num_guidance=3), get_method(name)
    order = torch.randperm(NUM, generator=torch.Generator().manual_seed(0))
    shuffled = batch.rows(order)
    there = value_and_gradients(batch, method, selection(batch, name))
    here = value_and_gradients(shuffled, method, selection(shuffled, name))
    assert_equal([here[0], here[1], here[2]], [there[0], there[1][order], there[2]])


@pytest.mark.parametrize("name", ALL)
def test_float32_agrees_with_float64(make_batch, name):
    batch, method = make_batch(NUM, num_guidance=3), get_method(name)
    exact = value_and_gradients(batch, method, selection(batch, name))
    rounded = value_and_gradients(batch.float(), method, selection(batch, name))
    # Log-probs up to 10 with a relative 6e-8 each, summed over 12 tokens.
    assert_equal([value.double() for value in rounded], exact, tolerance=5e-6)


@pytest.mark.parametrize("name", ALL)
def test_one_token_is_a_batch(make_batch, name):
    batch = make_batch(1)
    loss = batch.loss(get_method(name), selection(batch, name))
    gradient = torch.autograd.grad(loss, batch.hidden)[0]
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_no_tokens_are_a_batch_of_loss_zero(make_batch, name):
    batch = make_batch(0)
    assert batch.loss(get_method(name), selection(batch, name)).item() == 0.0
