"""The sliced output head: the same numbers as a dense one, for every slice size, without a dense one's memory."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import reference
from reference import differences
from tropd import objective
from tropd.objective import Head

OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.25},
    "softcap": {"softcap": 2.0},
    "temperature": {"temperature": 0.6},
    "everything": {"bias": True, "logit_scale": 1.7, "softcap": 3.0, "temperature": 1.3},
}
each_option = pytest.mark.parametrize("option", OPTIONS)


def a_head(option: str, size: int, width: int, dtype: torch.dtype = torch.float64) -> Head:
    random = torch.Generator().manual_seed(size * width)
    options = dict(OPTIONS[option])
    weight = torch.randn(size, width, generator=random, dtype=torch.float64).to(dtype).requires_grad_(True)
    if options.pop("bias", False):
        options["bias"] = torch.randn(size, generator=random, dtype=torch.float64).to(dtype).requires_grad_(True)
    return Head(weight, **options)


def some_states(num: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(num)
    return torch.randn(num, width, generator=random, dtype=torch.float64).to(dtype).requires_grad_(True)


def twin_logps(hidden: Tensor, head: Head) -> np.ndarray:
    bias = None if head.bias is None else head.bias.tolist()
    options = {"scale": head.logit_scale, "softcap": head.softcap, "temperature": head.temperature}
    arrays = (tensor.detach().double().numpy() for tensor in (hidden, head.weight))
    return reference.head_logp(*arrays, bias=bias, **options)


def dense_logps(hidden: Tensor, head: Head) -> Tensor:
    """The same equation in one line of autograd, the whole [N, V] at once."""
    logits = hidden @ head.weight.t() + (0 if head.bias is None else head.bias)
    logits = logits * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * (logits / head.softcap).tanh()
    return (logits / head.temperature).log_softmax(-1)


def leaves_of(hidden: Tensor, head: Head) -> list[Tensor]:
    return [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]


# Values.


@each_option
@pytest.mark.parametrize(("num", "size", "width"), [(1, 1, 1), (1, 7, 3), (5, 4, 2), (3, 19, 8)])
@pytest.mark.parametrize("slice_tokens", [1, 2, None])
def test_sampled_logps_and_entropies_equal_their_twins(option, num, size, width, slice_tokens):
    head, hidden = a_head(option, size, width), some_states(num, width)
    tokens = torch.arange(num) % size
    logp, entropy = objective.sampled_logps(hidden, head, tokens, slice_tokens=slice_tokens)
    twin = twin_logps(hidden, head)
    assert logp.tolist() == pytest.approx([twin[n, n % size] for n in range(num)], abs=1e-12)
    assert entropy.tolist() == pytest.approx([reference.entropy(row) for row in twin], abs=1e-12)


@each_option
@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_topk_equals_its_twin_best_first(option, k):
    head, hidden = a_head(option, 7, 3), some_states(5, 3)
    ids, logp = objective.topk_logps(hidden, head, k, slice_tokens=2)
    twin = twin_logps(hidden, head)
    assert ids.tolist() == [reference.top_k(row, k) for row in twin]
    for n in range(5):
        assert logp[n].tolist() == pytest.approx(reference.logp_of(twin[n], ids[n].tolist()).tolist(), abs=1e-12)
    assert not logp.requires_grad


def test_a_vocabulary_limit_restricts_the_choice_and_not_the_softmax():
    head, hidden = a_head("plain", 9, 3), some_states(4, 3)
    ids, logp = objective.topk_logps(hidden, head, 5, vocab_limit=5)
    twin = twin_logps(hidden, head)
    for n in range(4):
        assert ids[n].tolist() == reference.top_k(twin[n, :5], 5)
        assert logp[n].tolist() == pytest.approx(twin[n, ids[n].tolist()].tolist(), abs=1e-12)
        assert logp[n].exp().sum() < 1


def test_a_temperature_is_changed_without_touching_the_rest():
    head = a_head("everything", 5, 3)
    warm = head.at_temperature(2.5)
    hidden = some_states(3, 3)
    assert warm.temperature == 2.5 and warm.softcap == head.softcap and warm.bias is head.bias
    logp, _ = objective.sampled_logps(hidden, warm, torch.tensor([0, 1, 2]))
    assert logp.tolist() == pytest.approx([twin_logps(hidden, warm)[n, n] for n in range(3)], abs=1e-12)


# Gradients.


def weighted(hidden: Tensor, head: Head, slice_tokens: int | None) -> Tensor:
    """Something that reads both outputs, with another weight for every token."""
    tokens = torch.arange(hidden.shape[0]) % head.vocab_size
    logp, entropy = objective.sampled_logps(hidden, head, tokens, slice_tokens=slice_tokens)
    weights = torch.linspace(-1, 2, hidden.shape[0], dtype=logp.dtype)
    return (weights * logp).sum() + 0.3 * (weights * entropy).sum()


def weighted_dense(hidden: Tensor, head: Head) -> Tensor:
    logps = dense_logps(hidden, head)
    tokens = torch.arange(hidden.shape[0]) % head.vocab_size
    weights = torch.linspace(-1, 2, hidden.shape[0], dtype=logps.dtype)
    logp = logps[torch.arange(hidden.shape[0]), tokens]
    return (weights * logp).sum() - 0.3 * (weights * (logps.exp() * logps).sum(-1)).sum()


@each_option
@pytest.mark.parametrize("slice_tokens", [1, 3, 5, 6, 100, None])
def test_any_slice_size_gives_the_dense_value_and_gradients(option, slice_tokens):
    head, hidden = a_head(option, 11, 4), some_states(6, 4)
    ours, dense = weighted(hidden, head, slice_tokens), weighted_dense(hidden, head)
    assert ours.item() == pytest.approx(dense.item(), abs=1e-12)
    leaves = leaves_of(hidden, head)
    for mine, theirs in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(dense, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@each_option
def test_the_gradients_are_the_differences_of_the_twin(option):
    head, hidden = a_head(option, 4, 3), some_states(2, 3)
    logp, _ = objective.sampled_logps(hidden, head, torch.tensor([1, 3]), slice_tokens=1)
    leaves = leaves_of(hidden, head)
    ours = torch.autograd.grad(logp.sum(), leaves)
    arrays = [leaf.detach().numpy() for leaf in leaves]
    options = {"scale": head.logit_scale, "softcap": head.softcap, "temperature": head.temperature}
    for i, gradient in enumerate(ours):

        def value(at: np.ndarray, i: int = i) -> float:
            hidden_, weight_, *bias_ = [*arrays[:i], at, *arrays[i + 1 :]]
            logps = reference.head_logp(hidden_, weight_, bias=bias_[0] if bias_ else None, **options)
            return logps[0, 1] + logps[1, 3]

        np.testing.assert_allclose(gradient.numpy(), differences(value, arrays[i]), rtol=0, atol=2e-9)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(frozen):
    head, hidden = a_head("bias", 5, 3), some_states(4, 3)
    leaves = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
    leaves.pop(frozen).requires_grad_(False)
    weighted(hidden, head, 2).backward()
    assert all(leaf.grad is not None for leaf in leaves.values())
    assert {"hidden": hidden, "weight": head.weight, "bias": head.bias}[frozen].grad is None


def test_tokens_of_weight_zero_add_nothing_to_any_gradient():
    head, hidden = a_head("everything", 5, 3), some_states(6, 3)
    tokens = torch.tensor([0, 1, 2, 3, 4, 0])
    kept = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    leaves = leaves_of(hidden, head)
    logp, _ = objective.sampled_logps(hidden, head, tokens, slice_tokens=2)
    masked = torch.autograd.grad((kept * logp).sum(), leaves)
    few = torch.tensor([0, 4])
    logp, _ = objective.sampled_logps(hidden[few], head, tokens[few], slice_tokens=2)
    sliced = torch.autograd.grad(logp.sum(), leaves)
    for mine, theirs in zip(masked, sliced, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


def test_whole_number_outputs_travel_beside_differentiable_ones():
    head, hidden = a_head("plain", 5, 3), some_states(4, 3)

    def function(logits: Tensor, tokens: slice) -> tuple[Tensor, Tensor]:
        return logits.argmax(-1), logits.logsumexp(-1)

    best, total = objective.over_vocabulary(function, hidden, head, slice_tokens=3)
    assert not best.requires_grad and best.tolist() == twin_logps(hidden, head).argmax(-1).tolist()
    (ours,) = torch.autograd.grad(total.sum(), hidden)
    (dense,) = torch.autograd.grad((hidden @ head.weight.t()).logsumexp(-1).sum(), hidden)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-14)


# Precision.


@each_option
def test_float32_agrees_with_the_twin(option):
    head, hidden = a_head(option, 11, 4, torch.float32), some_states(6, 4, torch.float32)
    logp, entropy = objective.sampled_logps(hidden, head, torch.arange(6), slice_tokens=4)
    twin = twin_logps(hidden, head)
    assert logp.dtype == entropy.dtype == torch.float32
    assert logp.tolist() == pytest.approx([twin[n, n] for n in range(6)], abs=5e-6)  # logits up to 10, 1e-7 each
    assert entropy.tolist() == pytest.approx([reference.entropy(row) for row in twin], abs=5e-6)


def test_half_precision_weights_give_float32_log_probs_and_half_precision_gradients():
    head, hidden = a_head("everything", 11, 4, torch.bfloat16), some_states(6, 4, torch.bfloat16)
    logp, _ = objective.sampled_logps(hidden, head, torch.arange(6), slice_tokens=4)
    twin = twin_logps(hidden, head)
    assert logp.dtype == torch.float32
    assert logp.tolist() == pytest.approx([twin[n, n] for n in range(6)], abs=0.05)  # bfloat16 rounds 4 to 0.016
    gradients = torch.autograd.grad(logp.sum(), leaves_of(hidden, head))
    exact = torch.autograd.grad(
        dense_logps(*(upcast := _in_float64(hidden, head)))[range(6), range(6)].sum(), leaves_of(*upcast)
    )
    for gradient, true in zip(gradients, exact, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.double(), true, rtol=0.02, atol=0.03)


def _in_float64(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    again = [leaf.detach().double().requires_grad_(True) for leaf in leaves_of(hidden, head)]
    bias = again[2] if head.bias is not None else None
    return again[0], Head(again[1], bias, head.logit_scale, head.softcap, head.temperature)


def test_the_weight_gradient_of_many_slices_is_not_rounded_at_each():
    # One contribution of 256, then forty of ½: a running sum in bfloat16 would stay at 256.
    hidden = torch.ones(41, 1, dtype=torch.bfloat16)
    head = Head(torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True))
    logp, _ = objective.sampled_logps(hidden, head, torch.zeros(41, dtype=torch.long), slice_tokens=1)
    logp.backward(torch.tensor([512.0] + [1.0] * 40))
    # Two equally likely tokens: a state of weight w contributes w · (½, −½).
    assert head.weight.grad.flatten().tolist() == [276.0, -276.0]


# Edges.


def test_no_tokens_give_no_values_and_zero_gradients():
    head, hidden = a_head("everything", 5, 3), some_states(0, 3)
    logp, entropy = objective.sampled_logps(hidden, head, torch.empty(0, dtype=torch.long))
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + entropy.sum()).backward()
    assert hidden.grad.shape == (0, 3) and head.weight.grad.abs().max() == 0 and head.bias.grad.abs().max() == 0
    ids, top = objective.topk_logps(hidden, head, 2)
    assert ids.shape == top.shape == (0, 2)


def test_a_vocabulary_of_one_is_certain():
    head, hidden = a_head("plain", 1, 3), some_states(2, 3)
    logp, entropy = objective.sampled_logps(hidden, head, torch.zeros(2, dtype=torch.long))
    assert logp.tolist() == entropy.tolist() == [0.0, 0.0]


def test_an_impossible_token_counts_nothing_in_the_entropy():
    logps = torch.tensor([[0.0, 0.0, -math.inf]]).log_softmax(-1).requires_grad_(True)
    entropy = objective.entropy_of(logps)
    assert entropy.item() == pytest.approx(math.log(2))
    entropy.sum().backward()
    assert logps.grad.isfinite().all()


@pytest.mark.parametrize("k", [0, 6])
def test_a_topk_beyond_the_vocabulary_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        objective.topk_logps(torch.zeros(1, 2), Head(torch.zeros(5, 2)), k)


def test_wrong_shapes_and_temperatures_are_refused_in_words():
    with pytest.raises(ValueError, match="weight must be"):
        Head(torch.zeros(5))
    with pytest.raises(ValueError, match="temperature is 0"):
        Head(torch.zeros(5, 2), temperature=0.0)
    with pytest.raises(ValueError, match=r"hidden must be \[N, 2\]"):
        objective.sampled_logps(torch.zeros(1, 3), Head(torch.zeros(5, 2)), torch.zeros(1, dtype=torch.long))


# Memory.


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


NUM, SIZE, WIDTH = 12, 61, 3


def a_direct_term(kind: str, index: Tensor) -> objective.DirectTerm:
    if kind == "full vocabulary":
        states = torch.ones(len(index), WIDTH, dtype=torch.float64)
        return objective.FullVocabularyTerm(index, states, a_head("plain", SIZE, WIDTH), objective.reverse_kl)
    teacher_logp = torch.full((len(index), 3), 0.2, dtype=torch.float64).log()
    return objective.TopKTerm(index, torch.arange(3).expand(len(index), 3), teacher_logp, objective.topk_forward_kl)


def largest_tensors(kind: str, slice_tokens: int) -> tuple[int, int]:
    """Elements of the largest tensor of the forward and of the backward pass, with a direct term on half the tokens."""
    head, hidden = a_head("everything", SIZE, WIDTH), some_states(NUM, WIDTH)
    term, tokens = a_direct_term(kind, torch.arange(0, NUM, 2)), torch.arange(NUM)
    with LargestTensor() as forward:
        logp, direct, _ = objective.student_terms(hidden, head, tokens, term, slice_tokens=slice_tokens)
        total = logp.sum() + direct.sum()
    with LargestTensor() as backward:
        total.backward()
    return forward.elements, backward.elements


each_kind = pytest.mark.parametrize("kind", ["top-k", "full vocabulary"])


@each_kind
@pytest.mark.parametrize("slice_tokens", [1, 5, 8])
def test_logits_of_all_tokens_are_never_held_at_once(kind, slice_tokens):
    allowed = max(slice_tokens * SIZE, SIZE * WIDTH, NUM * WIDTH)
    assert max(largest_tensors(kind, slice_tokens)) <= allowed < NUM * SIZE


@each_kind
def test_the_memory_probe_would_see_them(kind):
    assert min(largest_tensors(kind, NUM)) >= NUM * SIZE


def test_by_default_a_slice_stays_within_its_bound(monkeypatch):
    monkeypatch.setattr("tropd.objective.head.layer.SLICE_ELEMENTS", 2 * SIZE + 1)
    head, hidden = a_head("plain", SIZE, WIDTH), some_states(NUM, WIDTH)
    with LargestTensor() as probe:
        objective.sampled_logps(hidden, head, torch.zeros(NUM, dtype=torch.long))
    assert probe.elements <= max(2 * SIZE, SIZE * WIDTH, NUM * WIDTH)
