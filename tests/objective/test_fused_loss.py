"""The fused loss: the per-token path's values and gradients for every method, with three products of the head."""

import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import reference
from tropd import objective
from tropd.objective import (
    METHODS,
    FullVocabularyTerm,
    Head,
    Method,
    RegionCounts,
    SeveralTerms,
    TokenSignals,
    get_method,
)
from tropd.objective.head import fused_loss, matmul, slice_losses

NUM, SIZE, WIDTH, K = 19, 23, 5, 4
OPTIONS = {
    "plain": {},
    "scale and temperature": {"logit_scale": 0.25, "temperature": 0.6},
    "softcap": {"softcap": 2.0},
    "everything": {"bias": True, "logit_scale": 1.7, "softcap": 3.0, "temperature": 1.3},
}
LAYOUTS = ("mixed", "all trusted", "all outliers", "nothing learned")
PER_TOKEN = ("trust", "outlier", "guidance", "reward")
each_method = pytest.mark.parametrize("name", METHODS)
each_option = pytest.mark.parametrize("option", OPTIONS)


@dataclass(frozen=True)
class Case:
    """N made-up tokens under a method, and the two paths to their loss."""

    hidden: Tensor
    head: Head
    tokens: Tensor
    method: Method
    signals: TokenSignals
    direct: objective.DirectTerm | None

    @property
    def counts(self) -> RegionCounts:
        return RegionCounts(*objective.region_counts(self.signals).tolist())

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.head.weight, self.head.bias) if leaf is not None]

    def plain(self) -> tuple[Tensor, objective.TokenLosses, tuple[Tensor, Tensor, Tensor]]:
        terms = objective.student_terms(self.hidden, self.head, self.tokens, self.direct, slice_tokens=6)
        losses = objective.token_losses(self.method, self.signals, *terms[:2])
        return objective.reduce_losses(losses, self.counts, self.method.reduction), losses, terms

    def fused(self, **options) -> objective.FusedLoss:
        signals = (self.method, self.signals, self.counts, self.direct)
        return objective.fused_loss(self.hidden, self.head, self.tokens, *signals, **options)


def regions(layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """Trust, outlier and guidance weights: three prefix tokens, two left out, a weight of one half."""
    trust = (torch.arange(NUM) % 3 != 0).double()
    if layout != "mixed":
        trust = torch.full((NUM,), float(layout == "all trusted"), dtype=torch.float64)
        outlier = torch.full_like(trust, float(layout == "all outliers"))
        return trust, outlier, torch.zeros_like(trust)
    trust[5] = 0.5
    student = (torch.arange(NUM) >= 3).double()
    student[[7, 11]] = 0.0
    return trust * student, (1 - trust) * student, (torch.arange(NUM) < 3).double()


def a_case(
    method: Method,
    option: str = "plain",
    dtype: torch.dtype = torch.float64,
    layout: str = "mixed",
    teacher_size: int = SIZE,
    rewards: bool = False,
) -> Case:
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    options = dict(OPTIONS[option])
    weight, bias, hidden = normal(SIZE, WIDTH).to(dtype), normal(SIZE).to(dtype), normal(NUM, WIDTH).to(dtype)
    head = Head(
        weight.requires_grad_(True), bias.requires_grad_(True) if options.pop("bias", False) else None, **options
    )
    tokens = torch.randint(SIZE, (NUM,), generator=random)
    wide = matmul.wide(dtype)
    with torch.no_grad():
        student_logp = head.logits(hidden).log_softmax(-1)[torch.arange(NUM), tokens]
    teacher_logps = (1.5 * normal(NUM, min(SIZE, teacher_size))).log_softmax(-1).to(wide)
    shared_ids = tokens.clamp_max(teacher_logps.shape[1] - 1)
    teacher_logp = teacher_logps.gather(-1, shared_ids[:, None])[:, 0]
    trust, outlier, guidance = (region.to(wide) for region in regions(layout))
    advantage = normal(NUM).to(wide) * (torch.arange(NUM) % 2) if rewards else None
    # The student has moved a little since the rollout, so that ratios are not all 1.
    signals = TokenSignals(student_logp - 0.1 * normal(NUM).to(wide), teacher_logp, trust, outlier, guidance, advantage)
    direct: objective.DirectTerm | None = None
    if method.needs_full_teacher:
        index = (trust + outlier > 0).nonzero()[:, 0]
        teacher = Head(normal(teacher_size, 3).to(dtype), temperature=0.9)
        direct = objective.full_term(method, signals, index, normal(len(index), 3).to(dtype), teacher, shared_ids)
    elif method.needs_topk:
        index = (outlier + (trust if method.trust != "k1" or method.baseline != "none" else 0) > 0).nonzero()[:, 0]
        ids, logp = objective.topk_of(teacher_logps[index], K, teacher_logps.shape[1])
        direct = objective.topk_term(method, signals, index, ids.int(), logp)
    return Case(hidden.requires_grad_(True), head, tokens, method, signals, direct)


def assert_equal_paths(case: Case, tolerance: float, **options) -> None:
    loss, losses, (student_logp, direct, mass) = case.plain()
    ours = case.fused(**options)
    kept = ~ours.student_logp.isnan()
    pairs = [(ours.loss, loss), (ours.student_logp[kept], student_logp[kept])]
    pairs += [(ours.direct, direct), (ours.topk_mass, mass)]
    pairs += [(getattr(ours.losses, region), getattr(losses, region)) for region in PER_TOKEN]
    gradients = torch.autograd.grad(3 * ours.loss, case.leaves), torch.autograd.grad(3 * loss, case.leaves)
    for mine, theirs in [*pairs, *zip(*gradients, strict=True)]:
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=0, atol=tolerance)


# Held to the per-token path.


@each_method
@each_option
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_method_has_the_values_and_gradients_of_the_per_token_path(name, option, layout):
    assert_equal_paths(a_case(get_method(name), option, layout=layout), 1e-12, slice_tokens=4)


@each_method
def test_verifiable_rewards_are_added(name):
    assert_equal_paths(a_case(get_method(name), rewards=True), 1e-12, slice_tokens=4)


def test_a_scale_of_the_advantage_agrees():
    case = a_case(get_method("tropd", advantage="sign", advantage_scale="total_variation"))
    scaled = replace(case, signals=replace(case.signals, advantage_scale=torch.full((NUM,), 0.3).double()))
    assert_equal_paths(scaled, 1e-12, slice_tokens=4)
    torch.testing.assert_close(scaled.fused().trust, 0.3 * case.fused().trust)


@pytest.mark.parametrize("name", ["tropd", "jsd", "gkd", "eopd", "tropd_support", "vopd"])
@pytest.mark.parametrize("slice_tokens", [1, 2, 7, 18, 19, 100, None])
@pytest.mark.parametrize("block", [1, 3 * SIZE, 2**20])
def test_any_slice_and_block_sizes_agree(name, slice_tokens, block, monkeypatch):
    monkeypatch.setitem(matmul.BLOCK_ELEMENTS, "cpu", block)
    monkeypatch.setattr(matmul, "TILE_ROWS", 8)
    assert_equal_paths(a_case(get_method(name), "everything"), 1e-12, slice_tokens=slice_tokens)


@pytest.mark.parametrize(
    "changes",
    [{"fkl_truncation": "tail"}, {"outlier": "fkl_scalar"}, {"outlier": "rkl_direct"}, {"reduction": "per_region"}],
)
def test_changed_parts_agree(changes):
    assert_equal_paths(a_case(get_method("tropd", **changes)), 1e-12)


UNION = get_method("tropd_support", support="union", fkl_top_k=3)


@each_option
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("outlier", ["clip", "mask", "k1"])
def test_a_union_of_supports_agrees(outlier, option, layout):
    method = get_method("tropd_support", support="union", fkl_top_k=3, outlier=outlier)
    assert_equal_paths(a_case(method, option, layout=layout), 1e-12, slice_tokens=4)


@pytest.mark.parametrize("reduction", ["selected", "per_region"])
def test_other_denominators_agree(reduction):
    assert_equal_paths(a_case(get_method("fkl_outlier", reduction=reduction)), 1e-12)


def with_several_teachers(case: Case, owners: Tensor) -> Case:
    """The case with the tokens of its direct term shared out among teachers of different widths and vocabularies."""
    random, owner = torch.Generator().manual_seed(5), owners[case.direct.index]
    terms = []
    for number, (width, size) in enumerate([(3, SIZE), (4, SIZE - 4), (2, SIZE + 6)]):
        index = case.direct.index[owner == number]
        weight, states = (
            torch.randn(rows, width, generator=random, dtype=torch.float64) for rows in (size, len(index))
        )
        further = tuple(column[owner == number] for column in case.direct.further)
        terms.append(FullVocabularyTerm(index, states, Head(weight, temperature=0.9), case.direct.function, further))
    return replace(case, direct=SeveralTerms(tuple(terms)))


OWNERS = {
    "mixed": torch.arange(NUM) % 3,
    "one without tokens": 2 * (torch.arange(NUM) % 2),
    "all of the second": torch.ones(NUM, dtype=torch.long),
    "in blocks": torch.arange(NUM) // 7,
}


@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("method", [*(get_method("gkd", jsd_beta=beta) for beta in (0.0, 0.3, 1.0)), UNION])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_teachers_agree(owners, method, layout):
    smallest = SIZE - 4  # of the teachers' vocabularies: a token that is learned from is in it
    case = a_case(method, layout=layout, rewards=layout == "all outliers", teacher_size=smallest)
    case = with_several_teachers(case, OWNERS[owners])
    assert_equal_paths(case, 1e-12, slice_tokens=4)
    assert_equal_paths(case, 1e-12, every_token=True)


def test_the_logits_of_several_teachers_are_not_held_at_once(monkeypatch):
    """Each run of tokens has its own buffers, and those of the run before are gone."""
    held, most = 0, 0

    def counted(weight, slices):
        nonlocal held, most
        buffer = slice_buffer(weight, slices)
        size = buffer.numel()
        held, most = held + size, max(most, held + size)

        def freed():
            nonlocal held
            held -= size

        weakref.finalize(buffer, freed)
        return buffer

    slice_buffer = fused_loss.slice_buffer
    monkeypatch.setattr(fused_loss, "slice_buffer", counted)
    monkeypatch.setattr(slice_losses, "slice_buffer", counted)
    with_several_teachers(a_case(get_method("gkd")), OWNERS["in blocks"]).fused(slice_tokens=4)
    assert held == 0 and most <= 4 * (SIZE + SIZE + 6), "the student's logits, and those of one teacher"


def test_several_teachers_are_the_sum_of_each_alone():
    case = with_several_teachers(a_case(get_method("gkd"), layout="all trusted"), OWNERS["mixed"])
    together, alone = case.fused(), 0.0
    for number, term in enumerate(case.direct.terms):
        mine = OWNERS["mixed"] == number
        narrow = objective.FullVocabularyTerm(torch.arange(len(term.index)), *list(vars(term).values())[1:])
        signals = (case.method, case.signals[mine], case.counts, narrow)
        part = objective.fused_loss(case.hidden[mine], case.head, case.tokens[mine], *signals)
        torch.testing.assert_close(together.direct[mine], part.direct)
        alone += part.loss
    torch.testing.assert_close(together.loss, alone)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("teacher_size", [SIZE - 4, SIZE, SIZE + 6])
def test_padded_vocabularies_agree(beta, teacher_size):
    others = (get_method(name) for name in ("tropd", "vopd", "tropd_support"))
    for method in (get_method("gkd", jsd_beta=beta), *others, UNION):
        assert_equal_paths(a_case(method, teacher_size=teacher_size), 1e-12, slice_tokens=5)


@each_method
@each_option
def test_in_single_precision_too(name, option):
    assert_equal_paths(a_case(get_method(name), option, torch.float32), 2e-5, slice_tokens=4)


@each_method
@pytest.mark.parametrize("option", ["plain", "everything"])
@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_near_the_exact_gradient(name, option, native, monkeypatch):
    """Of the same bfloat16 inputs in float64: 1% of each gradient's norm; a bfloat16 number is known to 0.4%."""
    if not native:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    case = a_case(get_method(name), option, torch.bfloat16)
    exact = _in_float64(case)
    ours, truth = case.fused(slice_tokens=4), exact.fused()
    assert ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=0, atol=2e-4)
    gradients = (
        torch.autograd.grad(value, leaves.leaves) for value, leaves in ((ours.loss, case), (truth.loss, exact))
    )
    for mine, true in zip(*gradients, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - true).norm() <= 0.01 * true.norm()


def _in_float64(case: Case) -> Case:
    def double(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().double()

    head = replace(case.head, weight=double(case.head.weight), bias=double(case.head.bias))
    fields = {name: double(getattr(case.signals, name)) for name in vars(case.signals)}
    direct = case.direct
    if isinstance(direct, FullVocabularyTerm):
        teacher = replace(direct.teacher_head, weight=double(direct.teacher_head.weight))
        direct = replace(direct, teacher_hidden=double(direct.teacher_hidden), teacher_head=teacher)
    again = replace(case, hidden=double(case.hidden), head=head, signals=TokenSignals(**fields), direct=direct)
    for leaf in again.leaves:
        leaf.requires_grad_(True)
    return again


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_near_certain_distributions_agree(beta):
    """Logits up to a few hundred: most probabilities are 0 in float32."""
    case = a_case(get_method("gkd", jsd_beta=beta), dtype=torch.float32)
    case = replace(case, head=replace(case.head, logit_scale=50.0))
    case.direct.teacher_head.weight.mul_(50.0)
    exact = _in_float64(case)
    paths = (case.fused().loss, case), (case.plain()[0], case), (exact.plain()[0], exact)
    ours, plain, true = (torch.autograd.grad(loss, of.leaves) for loss, of in paths)
    for mine, theirs, truth in zip(ours, plain, true, strict=True):
        assert (mine - truth).norm() <= 2 * (theirs - truth).norm() + 1e-6 * truth.norm()


# Held to the twins.


@pytest.mark.parametrize("option", ["plain", "everything"])
def test_trust_outliers_and_prefix_have_the_gradients_of_their_twins(option):
    """One token of each region, its gradient in the states by the chain rule in NumPy."""
    method = get_method("tropd", guidance_beta=0.3, fkl_top_k=K)
    case = a_case(method, option)
    case = replace(case, signals=replace(case.signals, rollout_logp=_logp(case)))  # the first update
    (gradient,) = torch.autograd.grad(case.fused(slice_tokens=4).loss, case.hidden)
    head, direct = case.head, case.direct
    for n in range(NUM):
        raw, hidden = case.hidden[n].detach().numpy(), case.hidden
        in_logits = np.zeros(SIZE)
        student = _twin_logps(case)[n]
        score = -np.exp(student)
        score[case.tokens[n]] += 1.0
        trust, outlier, prefix = (getattr(case.signals, f)[n].item() for f in _REGIONS)
        in_logits += (-trust * case.signals.log_ratio[n].item() - prefix * 0.3) * score
        if outlier:
            entry = direct.index.tolist().index(n)
            ids, logp = direct.token_ids[entry].tolist(), direct.teacher_logp[entry].numpy()
            in_logits += outlier * np.exp(logp).sum() * np.exp(student)
            in_logits[ids] -= outlier * np.exp(logp)
        expected = _through_the_head(in_logits, raw, head) / case.counts.total
        np.testing.assert_allclose(gradient[n].numpy(), expected, rtol=0, atol=1e-12)
        assert hidden.shape == (NUM, WIDTH)


_REGIONS = ("trust_weight", "outlier_weight", "guidance_mask")


def _twin_logps(case: Case) -> np.ndarray:
    head = case.head
    options = {"scale": head.logit_scale, "softcap": head.softcap, "temperature": head.temperature}
    bias = None if head.bias is None else head.bias.tolist()
    return reference.head_logp(case.hidden.detach().numpy(), head.weight.detach().numpy(), bias=bias, **options)


def _logp(case: Case) -> Tensor:
    return torch.tensor([_twin_logps(case)[n, token] for n, token in enumerate(case.tokens.tolist())])


def _through_the_head(in_logits: np.ndarray, hidden: np.ndarray, head: Head) -> np.ndarray:
    weight = head.weight.detach().numpy()
    raw = weight @ hidden + (0 if head.bias is None else head.bias.detach().numpy())
    slope = head.logit_scale / head.temperature
    if head.softcap is not None:
        slope = slope * (1 - np.tanh(raw * head.logit_scale / head.softcap) ** 2)
    return (in_logits * slope) @ weight


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_divergence_has_the_gradient_of_its_twin(beta):
    case = a_case(get_method("gkd", jsd_beta=beta), layout="all trusted")
    ours = case.fused(slice_tokens=4)
    (gradient,) = torch.autograd.grad(ours.loss, case.hidden)
    teacher = case.direct.teacher_head.logits(case.direct.teacher_hidden).log_softmax(-1).numpy()
    students = _twin_logps(case)
    for n in range(NUM):
        assert ours.direct[n].item() == pytest.approx(
            reference.generalised_jsd(students[n], teacher[n], beta), abs=1e-12
        )
        expected = reference.jsd_gradient(students[n], teacher[n], beta) @ case.head.weight.detach().numpy() / NUM
        np.testing.assert_allclose(gradient[n].numpy(), expected, rtol=0, atol=1e-12)


# How much work, and how often.


def products_of_the_head(name: str, layout: str = "mixed", backward: bool = True, **options) -> float:
    """Floating-point operations of one loss in units of one product of all tokens with the student's weight."""
    case = a_case(get_method(name), layout=layout)
    if isinstance(case.direct, FullVocabularyTerm):  # a teacher of the student's width
        width = torch.randn(len(case.direct.index), WIDTH, dtype=torch.float64)
        teacher = Head(torch.randn(SIZE, WIDTH, dtype=torch.float64))
        case = replace(case, direct=replace(case.direct, teacher_hidden=width, teacher_head=teacher))
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        loss = case.fused(**options).loss
        if backward:
            loss.backward()
    return counter.get_total_flops() / (2 * NUM * SIZE * WIDTH)


def test_products_are_counted():
    assert products_of_the_head("opd", "all trusted") == pytest.approx(3)
    assert products_of_the_head("fkl", "all outliers") == pytest.approx(3)
    assert products_of_the_head("gkd", "all trusted") == pytest.approx(4)
    assert products_of_the_head("vopd", "all trusted") == pytest.approx(4)
    assert products_of_the_head("tropd_support", "all outliers") == pytest.approx(3)
    assert products_of_the_head("opd", "all trusted", backward=False) == pytest.approx(1)
    assert products_of_the_head("opd", "nothing learned") == 0
    # Of 19 tokens, 14 are the student's and not left out; 8 of them have some trust, and outliers may be masked.
    assert products_of_the_head("fkl_outlier", slice_tokens=3) == pytest.approx(3 * 14 / NUM)
    assert products_of_the_head("mask_outlier") == pytest.approx(3 * 8 / NUM)
    assert products_of_the_head("mask_outlier", every_token=True) == pytest.approx(3)


def test_a_token_that_is_left_out_has_no_log_probability_unless_it_is_asked_for():
    case = a_case(get_method("mask_outlier"))
    few, every = case.fused(), case.fused(every_token=True)
    learned = objective.active_tokens(case.method, case.signals)
    assert 0 < learned.sum() < NUM
    assert torch.equal(~few.student_logp.isnan(), learned)
    torch.testing.assert_close(every.student_logp, case.plain()[2][0].detach())
    assert few.loss.item() == pytest.approx(every.loss.item(), abs=1e-15)


@pytest.mark.parametrize("name", ["tropd", "gkd"])
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(name, frozen):
    case = a_case(get_method(name), "everything")
    leaves = {"hidden": case.hidden, "weight": case.head.weight, "bias": case.head.bias}
    leaves[frozen].requires_grad_(False)
    case.fused().loss.backward()
    assert {key: leaf.grad is None for key, leaf in leaves.items()} == {key: key == frozen for key in leaves}


@pytest.mark.parametrize("name", ["tropd", "gkd"])
def test_without_gradient_the_values_are_the_same(name):
    case = a_case(get_method(name))
    with torch.no_grad():
        ours = case.fused()
    assert not ours.loss.requires_grad
    assert ours.loss.item() == pytest.approx(case.fused().loss.item(), abs=1e-15)


def test_only_the_loss_is_differentiable_and_only_once():
    ours = a_case(get_method("tropd")).fused()
    assert [name for name, value in ours._asdict().items() if value.requires_grad] == ["loss"]
    ours.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="An earlier backward pass has already used the gradients"):
        ours.loss.backward()


def test_gradients_of_several_losses_add_up_and_are_scaled():
    case = a_case(get_method("tropd"))
    ((case.fused().loss + case.fused().loss) / 4).backward()
    expected = torch.autograd.grad(0.5 * case.plain()[0], case.leaves)
    for leaf, gradient in zip(case.leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=0, atol=1e-13)


def test_the_parameter_takes_the_accumulated_gradient_without_a_copy(monkeypatch):
    case = a_case(get_method("opd"))
    loss = case.fused().loss
    held = loss.grad_fn.gradients.weight.data_ptr()
    loss.backward()
    assert case.head.weight.grad.data_ptr() == held


def test_no_tokens_have_no_loss_and_zero_gradients():
    signals = TokenSignals(*[torch.zeros(0, dtype=torch.float64)] * 5)
    hidden = torch.zeros(0, WIDTH, dtype=torch.float64, requires_grad=True)
    head = Head(torch.ones(SIZE, WIDTH, dtype=torch.float64, requires_grad=True))
    ours = objective.fused_loss(
        hidden, head, torch.zeros(0, dtype=torch.long), get_method("opd"), signals, RegionCounts(5.0, 0.0, 0.0)
    )
    ours.loss.backward()
    assert ours.loss.item() == 0 and ours.student_logp.shape == (0,)
    assert hidden.grad.shape == (0, WIDTH) and head.weight.grad.abs().max() == 0
