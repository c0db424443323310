"""Terms and losses of single tokens: the direct terms, the policy gradient, guidance, and where gradients stop."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from reference import log_softmax
from tropd import objective
from tropd.objective import FullVocabularyTerm, Head, TokenSignals, TopKTerm, get_method

SEED_WITH_OUTLIERS = 2
REGIONS = ("trust", "outlier", "guidance", "reward")


def total(losses: objective.TokenLosses) -> Tensor:
    return losses.trust + losses.outlier + losses.guidance + losses.reward


# The student's terms.


@pytest.mark.parametrize("slice_tokens", [1, 3, 7, 50, None])
@pytest.mark.parametrize("index", [[], [0], [6], [1, 2, 5], list(range(7))])
def test_the_topk_term_is_found_in_whichever_slice_its_tokens_fall(make_batch, index, slice_tokens):
    batch, k = make_batch(7), 4
    ids, teacher_logp = objective.topk_of(batch.teacher_logps[index], k, 9)
    term = TopKTerm(torch.tensor(index, dtype=torch.long), ids, teacher_logp, objective.topk_forward_kl)
    logp, values, masses = objective.student_terms(
        batch.hidden, batch.head, batch.tokens, term, slice_tokens=slice_tokens
    )
    assert not masses.requires_grad
    weight = batch.head.weight.detach().numpy()
    twin = reference.head_logp(batch.hidden.detach().numpy(), weight)
    for n in range(7):
        assert logp[n].item() == pytest.approx(twin[n, batch.tokens[n]], abs=1e-12)
        teacher = batch.teacher_logps[n].numpy()
        value = reference.topk_forward_kl(twin[n], teacher, k) if n in index else 0.0
        mass = np.exp(twin[n, reference.top_k(teacher, k)]).sum() if n in index else 0.0
        assert values[n].item() == pytest.approx(value, abs=1e-12)
        assert masses[n].item() == pytest.approx(mass, abs=1e-12)
    (gradient,) = torch.autograd.grad(values.sum(), batch.hidden)
    for n in range(7):
        in_logits = reference.topk_forward_kl_gradient(twin[n], batch.teacher_logps[n].numpy(), k, "none")
        expected = in_logits @ weight if n in index else np.zeros(4)
        assert gradient[n].tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_stored_teacher_in_float32_is_read_at_the_students_precision(make_batch):
    batch = make_batch(3)
    ids, logp = objective.topk_of(batch.teacher_logps, 2, 9)
    every = torch.arange(3)
    exact, stored = (
        objective.student_terms(
            batch.hidden, batch.head, batch.tokens, TopKTerm(every, i, t, objective.topk_forward_kl)
        )
        for i, t in ((ids, logp), (ids.int(), logp.float()))
    )
    assert stored[1].dtype == torch.float64
    assert stored[1].tolist() == pytest.approx(exact[1].tolist(), abs=1e-6)


@pytest.mark.parametrize("teacher_size", [5, 9, 12])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_full_vocabulary_term_compares_the_shared_entries_renormalised(make_batch, teacher_size, beta):
    batch = make_batch(4)
    random = torch.Generator().manual_seed(1)
    teacher_head = Head(torch.randn(teacher_size, 3, generator=random, dtype=torch.float64), temperature=0.8)
    index = torch.tensor([0, 2, 3])
    teacher_hidden = torch.randn(3, 3, generator=random, dtype=torch.float64)
    function = objective.full_function(get_method("gkd", jsd_beta=beta))
    term = FullVocabularyTerm(index, teacher_hidden, teacher_head, function)
    _, values, masses = objective.student_terms(batch.hidden, batch.head, batch.tokens, term, slice_tokens=2)
    assert values[1].item() == masses[1].item() == 0.0
    (gradient,) = torch.autograd.grad(values.sum(), batch.hidden)
    shared = min(9, teacher_size)
    weight = batch.head.weight.detach().numpy()
    for row, n in enumerate(index.tolist()):
        raw = weight @ batch.hidden[n].detach().numpy()
        teacher_raw = (teacher_head.weight @ teacher_hidden[row]).numpy()
        student, teacher = log_softmax(raw[:shared]), log_softmax(teacher_raw[:shared], temperature=0.8)
        assert values[n].item() == pytest.approx(reference.generalised_jsd(student, teacher, beta), abs=1e-12)
        expected = reference.jsd_gradient(student, teacher, beta) @ weight[:shared]
        assert gradient[n].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert gradient[1].abs().max() == 0


def test_no_tokens_have_no_terms(make_batch):
    batch = make_batch(0)
    ids, logp = objective.topk_of(batch.teacher_logps, 2, 9)
    term = TopKTerm(torch.empty(0, dtype=torch.long), ids, logp, objective.topk_forward_kl)
    for direct in (None, term):
        terms = objective.student_terms(batch.hidden, batch.head, batch.tokens, direct)
        assert [value.shape for value in terms] == [(0,)] * 3
        sum(value.sum() for value in terms).backward()


# The policy gradient.


def test_the_policy_gradient_by_hand():
    # ρ = ½, A = 3: loss −1.5, and d(−ρA)/d log π_S = −ρA = −1.5
    student = torch.tensor([math.log(0.2)], dtype=torch.float64, requires_grad=True)
    loss = objective.policy_gradient_loss(student, torch.tensor([math.log(0.4)]).double(), torch.tensor([3.0]).double())
    loss.sum().backward()
    assert loss.item() == pytest.approx(-1.5, abs=1e-7) and student.grad.item() == pytest.approx(-1.5, abs=1e-7)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # inside the clip: as without one
        (1.1, -2.0, 2.2, 2.2),
        (1.5, 1.0, -1.2, 0.0),  # already moved far enough the right way
        (1.5, -1.0, 1.5, 1.5),  # moved the wrong way: pulled back in full
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_the_clipped_surrogate_by_hand(ratio, advantage, loss, slope):
    student = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    rollout, advantages = torch.tensor([-1.0]).double(), torch.tensor([advantage]).double()
    ours = objective.policy_gradient_loss(student, rollout, advantages, ratio_clip=0.2)
    ours.sum().backward()
    assert ours.item() == pytest.approx(loss, abs=1e-12)
    assert student.grad.item() == pytest.approx(slope, abs=1e-12)


def test_on_the_first_update_the_ratio_is_exactly_one():
    student = torch.tensor([-3.3, -0.1], requires_grad=True)
    advantage = torch.tensor([0.7, -1.9])
    loss = objective.policy_gradient_loss(student, student, advantage)
    loss.sum().backward()
    assert torch.equal(loss, -advantage) and torch.equal(student.grad, -advantage)


def test_old_samples_weighted_by_the_ratio_average_to_the_new_policys_gradient():
    logits = torch.tensor([0.1, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.5, 0.2, -0.3], dtype=torch.float64).log_softmax(-1)
    advantage = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    loss = objective.policy_gradient_loss(logits.log_softmax(-1), old, advantage)
    (gradient,) = torch.autograd.grad((old.exp() * loss).sum(), logits)
    exact = reference.policy_gradient(logits.detach().log_softmax(-1).numpy(), advantage.numpy())
    assert gradient.tolist() == pytest.approx(exact.tolist(), abs=1e-15)


# Token by token.


@pytest.mark.parametrize("gate", ["bernoulli", "expected"])
@pytest.mark.parametrize("beta", [0.001, 1.0])
def test_the_loss_is_the_papers_reference_step(make_batch, gate, beta):
    """The paper's objective, token by token, in eight lines of dense PyTorch."""
    batch = make_batch(11, num_guidance=4, seed=SEED_WITH_OUTLIERS)
    method = get_method("tropd", gate=gate, fkl_top_k=3, guidance_beta=beta)
    losses = batch.losses(method, batch.signals(method))

    logps = (batch.hidden @ batch.head.weight.t()).log_softmax(-1)
    at = torch.arange(11), batch.tokens
    new, old, teacher = logps[at], logps[at].detach(), batch.teacher_logps[at]
    r = teacher - old
    m = (batch.uniforms < r.clamp_max(0).exp()).double() if gate == "bernoulli" else r.clamp_max(0).exp()
    pg = -(new - old).exp() * r
    top = batch.teacher_logps.topk(3)
    fkl = (top.values.exp() * (top.values - logps.gather(-1, top.indices))).sum(-1)
    prefix = batch.guidance
    expected = (1 - prefix) * (m * pg + (1 - m) * fkl) + prefix * beta * -new

    assert 0 < m[4:].sum() < 7, "an example with both kinds of token"
    torch.testing.assert_close(total(losses), expected, rtol=0, atol=1e-14)
    leaves = (batch.hidden, batch.head.weight)
    ours = torch.autograd.grad(total(losses).sum(), leaves, retain_graph=True)
    for mine, theirs in zip(ours, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


def four_tokens(weight: float = 1.0, **changes: Tensor) -> TokenSignals:
    """A trusted token, an outlier, a token of the prefix and one that is left out."""
    values = {
        "rollout_logp": torch.tensor([-1.0, -0.5, -2.0, -1.0]),
        "teacher_logp": torch.tensor([-0.4, -4.5, -0.1, -3.0]),
        "trust_weight": weight * torch.tensor([1.0, 0.0, 0.0, 0.0]),
        "outlier_weight": weight * torch.tensor([0.0, 1.0, 0.0, 0.0]),
        "guidance_mask": torch.tensor([0.0, 0.0, 1.0, 0.0]),
    }
    return TokenSignals(**(values | changes))


@pytest.mark.parametrize(
    ("outlier", "expected"),
    # r = 0.6 and −4; K1 at ratio 1 is −r; the direct term is 0.7 everywhere; β = 0.1 and −log π_S = 2
    [
        ({"outlier": "fkl_direct"}, [-0.6, 0.7, 0.2, 0.0]),
        ({"outlier": "fkl_direct", "fkl_weight": 0.5}, [-0.6, 0.35, 0.2, 0.0]),
        ({"outlier": "fkl_scalar"}, [-0.6, 0.7, 0.2, 0.0]),
        ({"outlier": "mask"}, [-0.6, 0.0, 0.2, 0.0]),
        ({"outlier": "clip"}, [-0.6, 2.0, 0.2, 0.0]),  # max(−4, −2)
        ({"outlier": "clip", "outlier_tau": -5.0}, [-0.6, 4.0, 0.2, 0.0]),
    ],
)
def test_four_tokens_by_hand(outlier, expected):
    signals = four_tokens()
    losses = objective.token_losses(
        get_method("tropd", guidance_beta=0.1, **outlier), signals, signals.rollout_logp, torch.full((4,), 0.7)
    )
    assert total(losses).tolist() == pytest.approx(expected, abs=1e-6)
    for region, mask in (("trust", 0), ("outlier", 1), ("guidance", 2)):
        value = getattr(losses, region)
        assert all(value[n] == 0 for n in range(4) if n != mask), region


def test_guidance_pulls_teacher_tokens_up_however_little_the_teacher_likes_them():
    student = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    for teacher_logp in (-0.01, -9.0):
        signals = four_tokens(teacher_logp=torch.full((4,), teacher_logp))
        losses = objective.token_losses(get_method("tropd", guidance_beta=0.25), signals, student, torch.zeros(4))
        (gradient,) = torch.autograd.grad(losses.guidance.sum(), student)
        assert gradient.tolist() == [0.0, 0.0, -0.25, 0.0]  # −β ∇log π_S, whatever π_T is


def test_guidance_has_the_gradient_of_its_twin():
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    signals = TokenSignals(*torch.tensor([[-1.0], [-2.0], [0.0], [0.0], [1.0]], dtype=torch.float64))
    method = get_method("tropd", guidance_beta=0.3)
    logp = logits.log_softmax(-1)[1:2]
    losses = objective.token_losses(method, signals, logp, torch.zeros_like(logp))
    losses.guidance.sum().backward()
    assert logits.grad.tolist() == pytest.approx(reference.guidance_gradient(logits.tolist(), 1, 0.3), abs=1e-15)


def test_verifiable_rewards_reach_student_tokens_and_no_others():
    signals = four_tokens(reward_advantage=torch.full((4,), 3.0))
    losses = objective.token_losses(get_method("tropd"), signals, signals.rollout_logp, torch.zeros(4))
    assert losses.reward.tolist() == [-3.0, -3.0, 0.0, 0.0]


def test_the_scale_is_of_what_trusted_tokens_learn_and_of_nothing_else():
    student = torch.tensor([-0.9, -0.6, -2.0, -1.0], requires_grad=True)
    method = get_method("tropd_clip", advantage="sign")
    seen = []
    for changes in ({}, {"advantage_scale": torch.full((4,), 0.25)}):
        signals = four_tokens(reward_advantage=torch.full((4,), 3.0), **changes)
        losses = objective.token_losses(method, signals, student, torch.zeros(4))
        (gradient,) = torch.autograd.grad(total(losses).sum() - losses.reward.sum(), student)
        seen.append((losses, gradient))
    (plain, of_plain), (scaled, of_scaled) = seen
    assert plain.trust[0] < 0 and scaled.trust.tolist() == (0.25 * plain.trust).tolist()
    assert of_scaled.tolist() == (of_plain * torch.tensor([0.25, 1.0, 1.0, 1.0])).tolist()
    for region in REGIONS[1:]:
        assert getattr(scaled, region).tolist() == getattr(plain, region).tolist()


# TV-OPD's coefficient.


def scales(measured: list[float]) -> list[float]:
    """c of each batch."""
    scale, found = objective.AdvantageScale(), []
    for total_variation in measured:
        found.append(scale.value)
        scale = scale.after(total_variation)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_scale_of_each_batch_equals_its_twin(seed):
    falling = np.exp(-0.05 * np.arange(120)) * np.random.default_rng(seed).uniform(0.2, 0.6, 120)
    ours, twin = scales(falling.tolist()), reference.total_variation_scales(falling.tolist(), epsilon=1e-8)
    assert ours == pytest.approx(twin, abs=1e-12)
    assert ours[:2] == [1.0, 1.0] and 0.1 < min(ours) < 0.6


@pytest.mark.parametrize("constant", [0.0, 1e-12, 0.3, 1.0])
def test_the_scale_of_a_constant_total_variation_is_1(constant):
    assert scales([constant] * 50) == [1.0] * 50


def test_the_scale_is_within_its_bounds():
    assert scales([0.2] + [0.6] * 50) == [1.0] * 51  # a student that drifts off takes no larger steps
    assert scales([0.0] + [0.5] * 50) == [1.0] * 51  # likewise one that began as its teacher
    vanished = scales([0.5] + [0.0] * 200)
    assert vanished == sorted(vanished, reverse=True) and vanished[-1] == 0.1
    assert vanished[2] == pytest.approx(math.sqrt(0.95))


# Where gradients stop.


def test_only_the_students_terms_carry_gradient():
    plain = four_tokens(weight=0.5)
    watched = {name: getattr(plain, name).clone().requires_grad_(True) for name in ("rollout_logp", "teacher_logp")}
    signals = four_tokens(weight=0.5, **watched)
    student = plain.rollout_logp.clone().requires_grad_(True)
    direct = torch.full((4,), 0.7, requires_grad=True)
    for name in objective.METHODS:
        losses = objective.token_losses(get_method(name), signals, student, direct)
        loss = total(losses).sum()
        found = torch.autograd.grad(loss, [*watched.values(), student], allow_unused=True)
        assert found[:2] == (None, None), name
        assert found[2] is not None, name


def test_the_scalar_forward_kl_is_a_number_and_the_direct_one_is_a_function():
    student, direct = torch.full((4,), -1.0, requires_grad=True), torch.full((4,), 0.7, requires_grad=True)
    for outlier, reaches in (("fkl_scalar", False), ("fkl_direct", True)):
        losses = objective.token_losses(get_method("tropd", outlier=outlier), four_tokens(), student, direct)
        (gradient,) = torch.autograd.grad(losses.outlier.sum(), direct, allow_unused=True)
        assert (gradient is not None) == reaches


# Tokens that do not count.


@pytest.mark.parametrize("outlier", ["fkl_direct", "fkl_scalar", "mask", "clip"])
@pytest.mark.parametrize("teacher_logp", [-math.inf, -1e30, -800.0])
def test_a_token_of_weight_zero_adds_nothing_whatever_its_log_ratio(teacher_logp, outlier):
    student = four_tokens().rollout_logp.clone().requires_grad_(True)
    signals = four_tokens(weight=0.0, teacher_logp=torch.full((4,), teacher_logp))
    losses = objective.token_losses(get_method("tropd", outlier=outlier), signals, student, torch.zeros(4))
    (gradient,) = torch.autograd.grad(total(losses).sum(), student)
    assert (losses.trust + losses.outlier).tolist() == [0.0] * 4
    assert gradient[[0, 1, 3]].tolist() == [0.0] * 3


@pytest.mark.parametrize("gate", ["bernoulli", "expected", "hard"])
@pytest.mark.parametrize("outlier", ["fkl_direct", "fkl_scalar", "mask", "clip"])
def test_a_token_the_teacher_forbids_is_all_outlier_and_stays_finite(gate, outlier):
    student = torch.tensor([-0.5], requires_grad=True)
    rollout, teacher = student.detach(), torch.tensor([-math.inf])
    method = get_method("tropd", gate=gate, outlier=outlier)
    trust = objective.trust_weight(gate, teacher - rollout, uniforms=torch.zeros(1), tau=method.outlier_tau)
    signals = TokenSignals(rollout, teacher, trust, 1 - trust, torch.zeros(1))
    direct = torch.tensor([0.7], requires_grad=True)
    loss = total(objective.token_losses(method, signals, student, direct)).sum()
    gradients = torch.autograd.grad(loss, [student, direct], allow_unused=True)
    assert trust.item() == 0.0 and loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def test_no_tokens_have_no_losses():
    nothing = torch.empty(0)
    signals = TokenSignals(nothing, nothing, nothing, nothing, nothing)
    for name in objective.METHODS:
        losses = objective.token_losses(get_method(name), signals, nothing, nothing)
        assert all(getattr(losses, region).shape == (0,) for region in REGIONS)
