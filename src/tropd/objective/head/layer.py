"""Per-token terms from hidden states and an `lm_head`, a slice of tokens at a time.

Vocabulary-wide work never holds more than one slice: `over_vocabulary` projects a few tokens, hands their logits to
a function that returns per-token values, and throws the logits away; the backward pass projects the same slice again.
`scan_vocabulary` is its quick form for what needs no gradient, and `fused_loss` that of the loss.

Shapes: N tokens (already selected, no padding), C tokens of one slice, R rows of one block, H hidden size, V
vocabulary, K alternatives.
Entry n of every tensor describes token n: `hidden_NH[n]` is the state that *predicts* `token_ids_N[n]`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..endings import Endings, events_of, one_action
from ..shapes import check_rows, check_same_shape
from .matmul import (
    add_weight_gradient,
    blocks_of,
    narrow_,
    product_dtype,
    project_into,
    slices_of,
    states_gradient,
    wide,
)

SLICE_ELEMENTS = 2**26
"""Default size of what is held of logits at once, in elements: at most 256 MiB in float32."""

SLICE_TOKENS = {"cpu": (176, 128), "elsewhere": (384, 192)}
"""No slice has more tokens by default, alone or beside another of its size: enough for the products to be quick, and
1.1% to 2.4% of the logits of 16,384 tokens at once."""

LogitsFunction = Callable[[Tensor, slice], tuple[Tensor, ...]]
"""Maps float32 logits [C, V] and the slice of tokens they belong to onto per-token tensors [C, ...]."""


@dataclass(frozen=True)
class Head:
    """The last layer of a language model: logits = softcap·tanh((h·Wᵀ + b)·scale / softcap) / temperature.

    Args:
        weight: [V, H], the `lm_head` weight.
        bias: [V] or `None`.
        logit_scale: multiplier of the raw logits (Cohere's `logit_scale`, one over Granite's `logits_scaling`).
        softcap: bound of Gemma's tanh in logits, or `None`.
        temperature: the sampling temperature; the scored softmax is the sampled one only if both use it.
        endings: ids that end a response and are one action together; see `endings`. One, or none, changes nothing.

    Raises:
        ValueError: shapes that do not fit, a temperature of 0 or less, or endings that are no ids of this layer.

    >>> Head(torch.tensor([[1.0], [3.0]]), temperature=2.0).logits(torch.tensor([[4.0]]))
    tensor([[2., 6.]])
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    endings: Endings = ()

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ValueError(f"weight must be [V, H], got {tuple(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"bias is of shape {list(self.bias.shape)} for a weight of shape {list(self.weight.shape)}; "
                f"it must be [{self.vocab_size}]"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; logits are divided by it, so it must be above 0")
        known = all(0 <= ending < len(self.weight) for ending in self.endings)
        if not known or len(set(self.endings)) < len(self.endings):
            raise ValueError(f"endings are {self.endings}; give distinct ids from 0 to {self.vocab_size - 1}")

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    def at_temperature(self, temperature: float, endings: Endings = ()) -> "Head":
        """The head as a rollout is read: at its sampling temperature, and with its endings as one action."""
        return replace(self, temperature=temperature, endings=endings)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of a few tokens, in float32 (float64 for float64 inputs)."""
        if not needs_gradient(hidden_NH, self):
            return self.transform(project(hidden_NH, self.weight, self.bias))
        dtype = wide(self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return self.transform(F.linear(hidden_NH.to(self.weight.dtype).to(dtype), self.weight.to(dtype), bias))

    def transform(self, raw_NV: Tensor) -> Tensor:
        """Logits from the raw projection; may change `raw_NV` where that carries no gradient."""
        logits = raw_NV if self.logit_scale == 1.0 else raw_NV * self.logit_scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return one_action(logits if self.temperature == 1.0 else logits / self.temperature, self.endings)


def over_vocabulary(
    function: LogitsFunction, hidden_NH: Tensor, head: Head, *, slice_tokens: int | None = None
) -> tuple[Tensor, ...]:
    """Apply `function` to the logits of all N tokens without holding more than one slice of them.

    Differentiable in `hidden_NH`, `head.weight` and `head.bias` through every output that depends on the logits;
    gradients of the weight are accumulated in float32 over the slices. `function` must be pure: it runs again in the
    backward pass.

    >>> def largest(logits_CV, tokens):
    ...     return (logits_CV.amax(-1),)
    >>> over_vocabulary(largest, torch.tensor([[1.0], [-1.0]]), Head(torch.tensor([[1.0], [3.0]])), slice_tokens=1)
    (tensor([ 3., -1.]),)

    Args:
        function: logits [C, V] and their slice of tokens to a tuple of per-token tensors [C, ...].
        hidden_NH: [N, H].
        head: the output layer.
        slice_tokens: tokens per slice; by default as many as keep a slice within `SLICE_ELEMENTS`.

    Returns:
        The outputs of `function`, concatenated over tokens.

    Raises:
        ValueError: `hidden_NH` is not [N, H] of this head.
    """
    slices = slices_for(hidden_NH, head, slice_tokens)
    values: tuple[Tensor, ...] = _OverVocabulary.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight, head.bias, head, function, slices
    )
    return values


@torch.no_grad()
def scan_vocabulary(
    function: LogitsFunction, hidden_NH: Tensor, head: Head, *, slice_tokens: int | None = None
) -> tuple[Tensor, ...]:
    """As `over_vocabulary`, without gradient: the logits of one slice are written over those of the last.

    >>> def largest(logits_RV, tokens):
    ...     return (logits_RV.amax(-1),)
    >>> scan_vocabulary(largest, torch.tensor([[1.0], [-1.0]]), Head(torch.tensor([[1.0], [3.0]])))
    (tensor([ 3., -1.]),)

    Args:
        function: float32 logits [R, V] of a block of tokens and the block's place to a tuple of per-token tensors
            [R, ...]. It may change the logits; what it returns must not be a view of them.
        hidden_NH: [N, H].
        head: the output layer.
        slice_tokens: tokens projected at once; `function` sees at most this many of them.

    Returns:
        The outputs of `function`, concatenated over tokens.

    Raises:
        ValueError: `hidden_NH` is not [N, H] of this head.
    """
    slices = slices_for(hidden_NH, head, slice_tokens)
    buffer_CV = slice_buffer(head.weight, slices)
    parts = []
    for tokens in slices:
        raw_CV = project_into(buffer_CV[: tokens.stop - tokens.start], hidden_NH[tokens], head.weight, head.bias)
        for rows in blocks_of(raw_CV):
            place = slice(tokens.start + rows.start, tokens.start + rows.stop)
            parts.append(function(head.transform(raw_CV[rows]), place))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def sampled_logps(
    hidden_NH: Tensor, head: Head, token_ids_N: Tensor, *, slice_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of the distribution it was drawn from, both [N], in nats.

    With several endings in the head both are of π̄, for which any of them is one outcome.

    >>> head = Head(torch.zeros(4, 2))
    >>> logp, entropy = sampled_logps(torch.ones(1, 2), head, torch.tensor([3]))
    >>> bool(torch.isclose(-logp, entropy)), round(logp.item(), 4)
    (True, -1.3863)

    Args:
        hidden_NH: [N, H], states that predict the tokens.
        head: the output layer, at the sampling temperature.
        token_ids_N: the tokens.
        slice_tokens: tokens per slice, see `over_vocabulary`.

    Raises:
        ValueError: `hidden_NH` does not fit the head, or has not one row for each token.
    """
    check_rows(token_ids_N, 1, hidden_NH=hidden_NH)
    token_ids_N = events_of(token_ids_N, head.endings)
    if not needs_gradient(hidden_NH, head):
        scratch = Scratch()

        def scan(logits_RV: Tensor, tokens: slice) -> tuple[Tensor, Tensor]:
            logits_RV, log_sum, entropy = normalise_(logits_RV, scratch)
            return gather_logps(logits_RV, token_ids_N[tokens]) - log_sum, entropy

        logp, entropy = scan_vocabulary(scan, hidden_NH, head, slice_tokens=slice_tokens)
        return logp, entropy

    def logp_and_entropy(logits_CV: Tensor, tokens: slice) -> tuple[Tensor, Tensor]:
        logps_CV = logps_of(logits_CV)
        return gather_logps(logps_CV, token_ids_N[tokens]), entropy_of(logps_CV)

    logp, entropy = over_vocabulary(logp_and_entropy, hidden_NH, head, slice_tokens=slice_tokens)
    return logp, entropy


def topk_logps(
    hidden_NH: Tensor, head: Head, k: int, *, vocab_limit: int | None = None, slice_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens: ids [N, K] and log-probabilities [N, K], best first.

    Probabilities are over the head's whole vocabulary; `vocab_limit` keeps the *choice* below an id, for a student
    whose vocabulary is padded less than the teacher's.

    >>> ids, logp = topk_logps(torch.ones(1, 1), Head(torch.tensor([[0.1], [0.6], [0.3]]).log()), 2)
    >>> ids.tolist(), logp.exp()
    ([[1, 2]], tensor([[0.6000, 0.3000]]))

    Args:
        hidden_NH: [N, H].
        head: the output layer.
        k: how many tokens.
        vocab_limit: only smaller ids are chosen; `None` for all.
        slice_tokens: tokens per slice, see `over_vocabulary`.

    Raises:
        ValueError: `k` is outside of the shared vocabulary, or `hidden_NH` does not fit the head.
    """
    limit = head.vocab_size if vocab_limit is None else min(vocab_limit, head.vocab_size)
    if not 1 <= k <= limit:
        raise ValueError(f"k is {k}; it must be between 1 and the shared vocabulary of {limit} entries")

    def topk(logits_RV: Tensor, tokens: slice) -> tuple[Tensor, Tensor]:
        return topk_of(logps_of(logits_RV), k, limit)

    ids_NK, logp_NK = scan_vocabulary(topk, hidden_NH, head, slice_tokens=slice_tokens)
    return ids_NK, logp_NK


class Scratch:
    """Memory for one block's temporaries, shared by the blocks of a pass.

    Fresh ones would scatter the heap: a block's small results stay, and what is freed around them is seldom of the size
    that the next block asks for. 16k tokens with a top-k on every fifth held 7 GB that way.
    """

    _kept: Tensor | None = None

    def for_rows(self, logits_RV: Tensor, num_rows: int | None = None) -> Tensor:
        """An uninitialised [R, V] like `logits_RV`, or of `num_rows`; what was handed out before is overwritten."""
        num_rows = len(logits_RV) if num_rows is None else num_rows
        if self._kept is None or len(self._kept) < num_rows:
            # One row more: the blocks of a pass are nearly equal.
            self._kept = logits_RV.new_empty(num_rows + 1, logits_RV.shape[1])
        return self._kept[:num_rows]


def normalise_(logits_RV: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """Shift each row's largest logit to 0, in place; `scratch` is for a temporary.

    Returns:
        the shifted logits [R, V], −inf raised to a finite number that exp sends to 0; the log of the sum of their
        exponentials [R]; and the row's entropy [R], log Σ − Σ π·shifted, in nats. Row by row, shifted − log Σ = log π.
    """
    logits_RV -= logits_RV.amax(-1, keepdim=True)
    logits_RV.clamp_(min=torch.finfo(logits_RV.dtype).min)
    probs_RV = torch.softmax(logits_RV, -1, out=scratch.for_rows(logits_RV))
    log_sum = -probs_RV.amax(-1).log()  # the likeliest token's probability is exp(0) over the sum
    return logits_RV, log_sum, log_sum - probs_RV.mul_(logits_RV).sum(-1)


def logps_of(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N, V] from ready logits, in float32 (float64 for float64 logits).

    With `gather_logps`, `entropy_of` and `topk_of` this is the plain path that the sliced one is held to.

    >>> logps_of(torch.tensor([[1.0, 1.0]])).exp()
    tensor([[0.5000, 0.5000]])

    Raises:
        ValueError: the logits have no axis.
    """
    check_same_shape(least_axes=1, logits_NV=logits_NV)
    return F.log_softmax(logits_NV.to(wide(logits_NV.dtype)) / temperature, dim=-1)


def topk_of(logps_NV: Tensor, k: int, vocab_limit: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of the k likeliest among the first `vocab_limit` entries.

    >>> ids, logp = topk_of(torch.tensor([[0.1, 0.6, 0.3]]).log(), 1, vocab_limit=3)
    >>> ids.tolist(), round(logp.exp().item(), 4)
    ([[1]], 0.6)

    Raises:
        ValueError: the log-probabilities are not [N, V].
    """
    check_same_shape(least_axes=2, logps_NV=logps_NV)
    top = logps_NV[:, :vocab_limit].topk(k, dim=-1)
    return top.indices, top.values


def gather_logps(logps_NV: Tensor, token_ids_N: Tensor) -> Tensor:
    """Log-probability of one token per row, [N].

    >>> gather_logps(torch.tensor([[0.1, 0.6, 0.3]]).log(), torch.tensor([1])).exp()
    tensor([0.6000])

    Raises:
        ValueError: there is not one row for each token.
    """
    check_rows(token_ids_N, 1, logps_NV=logps_NV)
    return logps_NV.gather(-1, token_ids_N.unsqueeze(-1)).squeeze(-1)


def entropy_of(logps_NV: Tensor) -> Tensor:
    """Entropy H = −Σ π log π per row, [N], in nats; impossible tokens (−inf) count as 0·log 0 = 0.

    >>> round(entropy_of(torch.tensor([[0.5, 0.5, 0.0]]).log()).item(), 4)
    0.6931

    Raises:
        ValueError: the log-probabilities have no axis.
    """
    check_same_shape(least_axes=1, logps_NV=logps_NV)
    return -(logps_NV.exp() * logps_NV.masked_fill(logps_NV == -torch.inf, 0.0)).sum(-1)


class _OverVocabulary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        function: LogitsFunction,
        slices: list[slice],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden_NH, weight, bias)
        ctx.head, ctx.function, ctx.slices = head, function, slices
        parts = [function(head.transform(project(hidden_NH[tokens], weight, bias)), tokens) for tokens in slices]
        outputs = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*[output for output in outputs if not output.is_floating_point()])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight, bias = ctx.saved_tensors
        gradients = HeadGradients(hidden_NH, weight, bias, ctx.needs_input_grad[:3])
        for tokens in ctx.slices:
            raw_grad_CV = _raw_logit_grad(
                ctx, hidden_NH[tokens], weight, bias, tokens, [grad[tokens] for grad in grads]
            )
            if raw_grad_CV is not None:
                gradients.add(tokens, raw_grad_CV)
        return (*gradients.result(), None, None, None)


class HeadGradients:
    """Gradients of the states, the weight and the bias, added up over slices in float32 (float64 for float64).

    Args:
        hidden_NH: [N, H].
        weight: [V, H].
        bias: [V] or `None`.
        needs: which of the three are wanted.
    """

    def __init__(self, hidden_NH: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...]):
        self._inputs = hidden_NH, weight, bias
        needs_hidden, needs_weight, needs_bias = needs
        # Half as wide as it is kept: a loss scale arrives with the backward pass, and float16 has underflowed by then.
        kept = wide(hidden_NH.dtype) if hidden_NH.dtype == torch.float16 else hidden_NH.dtype
        self.hidden = torch.zeros_like(hidden_NH, dtype=kept) if needs_hidden else None
        self.weight = torch.empty_like(weight, dtype=wide(weight.dtype)) if needs_weight else None
        self.bias = torch.zeros_like(bias, dtype=wide(bias.dtype)) if needs_bias and bias is not None else None
        self._weight_is_written = False

    def add(self, tokens: slice, raw_grad_CV: Tensor) -> None:
        """Add what one slice of tokens contributes; `raw_grad_CV`, the gradient of its raw logits, is overwritten."""
        hidden_NH, weight, _ = self._inputs
        if self.bias is not None:
            self.bias += raw_grad_CV.sum(0)
        dtype = product_dtype(weight, of_gradient=True)
        grad_CV = raw_grad_CV if raw_grad_CV.dtype == dtype else narrow_(raw_grad_CV, dtype)
        if self.hidden is not None:
            self.hidden[tokens] = states_gradient(grad_CV, weight).to(self.hidden.dtype)
        if self.weight is not None:
            # Through the weight's dtype, in which the states were projected.
            hidden_CH = hidden_NH[tokens].to(weight.dtype)
            add_weight_gradient(self.weight, grad_CV, hidden_CH, first=not self._weight_is_written)
            self._weight_is_written = True

    def result(self, factor: float = 1.0) -> list[Tensor | None]:
        """The three gradients times `factor`, in the dtypes of what they belong to; `None` where not wanted. Once."""
        if self.weight is not None and not self._weight_is_written:
            self.weight.zero_()
        results: list[Tensor | None] = []
        for gradient, of in zip((self.hidden, self.weight, self.bias), self._inputs, strict=True):
            if gradient is not None and factor != 1.0:
                gradient.mul_(factor)  # in place: nobody else holds it
            results.append(None if gradient is None or of is None else gradient.to(of.dtype))
        return results


def _raw_logit_grad(
    ctx: Any, hidden_CH: Tensor, weight: Tensor, bias: Tensor | None, tokens: slice, grads: list[Tensor]
) -> Tensor | None:
    """Gradient of one slice's raw logits, or `None` where every upstream gradient is zero (nothing to project)."""
    if not any(bool(grad.any()) for grad in grads if grad.is_floating_point()):
        return None
    raw_CV = project(hidden_CH, weight, bias)
    with torch.enable_grad():
        raw_CV.requires_grad_(True)
        outputs = ctx.function(ctx.head.transform(raw_CV), tokens)
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
    if not pairs:
        return None
    return torch.autograd.grad([out for out, _ in pairs], raw_CV, [grad for _, grad in pairs])[0]


def needs_gradient(hidden_NH: Tensor, head: Head) -> bool:
    """Is anything going to be differentiated through this head?"""
    inputs = (hidden_NH, head.weight, head.bias)
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)


def default_slice_tokens(vocab_size: int, device: str = "elsewhere", slices_held: int = 1) -> int:
    """Tokens of one slice: at most `SLICE_TOKENS`, and at most `SLICE_ELEMENTS` logits in the one or two held."""
    most = SLICE_TOKENS.get(device, SLICE_TOKENS["elsewhere"])[slices_held - 1]
    return max(1, min(most, SLICE_ELEMENTS // (vocab_size * slices_held)))


def slices_for(hidden_NH: Tensor, head: Head, slice_tokens: int | None = None, slices_held: int = 1) -> list[slice]:
    """The slices in which the tokens are projected, of at most `slice_tokens`; refuses states of another shape."""
    if hidden_NH.ndim != 2 or hidden_NH.shape[1] != head.weight.shape[1]:
        raise ValueError(f"hidden must be [N, {head.weight.shape[1]}] for this head, got {tuple(hidden_NH.shape)}")
    most = slice_tokens or default_slice_tokens(head.weight.shape[0], hidden_NH.device.type, slices_held)
    return slices_of(hidden_NH.shape[0], most)


def slice_buffer(weight: Tensor, slices: list[slice]) -> Tensor:
    """Scratch for the raw logits of the longest slice, [C, V]."""
    tokens = max(piece.stop - piece.start for piece in slices)
    return weight.new_empty(tokens, weight.shape[0], dtype=wide(weight.dtype))


def project(hidden_NH: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Raw logits [N, V] in float32 (float64 for float64), without gradient."""
    with torch.no_grad():
        raw_NV = weight.new_empty(hidden_NH.shape[0], weight.shape[0], dtype=wide(weight.dtype))
        return project_into(raw_NV, hidden_NH, weight, bias)
