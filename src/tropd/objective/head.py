"""Per-token terms from hidden states and an `lm_head`, a slice of tokens at a time.

Vocabulary-wide work never holds more than one slice: `over_vocabulary` projects a few tokens, hands their logits to
a function that returns per-token values, and throws the logits away; the backward pass projects the same slice again.

Shapes: N tokens (already selected, no padding), C tokens of one slice, H hidden size, V vocabulary, K alternatives.
Entry n of every tensor describes token n: `hidden_NH[n]` is the state that *predicts* `token_ids_N[n]`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

SLICE_ELEMENTS = 2**25
"""Default size of one slice of logits, in elements: 128 MiB in float32."""

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
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ValueError(f"weight must be [V, H], got {tuple(self.weight.shape)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; logits are divided by it, so it must be above 0")

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    def at_temperature(self, temperature: float) -> "Head":
        return replace(self, temperature=temperature)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of a few tokens, in float32 (float64 for float64 inputs)."""
        return self.transform(_project(hidden_NH, self.weight, self.bias))

    def transform(self, raw_NV: Tensor) -> Tensor:
        """Scale, softcap and temperature, applied to the raw projection."""
        logits = raw_NV if self.logit_scale == 1.0 else raw_NV * self.logit_scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1.0 else logits / self.temperature


def over_vocabulary(
    function: LogitsFunction, hidden_NH: Tensor, head: Head, *, slice_tokens: int | None = None
) -> tuple[Tensor, ...]:
    """Apply `function` to the logits of all N tokens without holding more than one slice of them.

    Differentiable in `hidden_NH`, `head.weight` and `head.bias` through every output that depends on the logits;
    gradients of the weight are accumulated in float32 over the slices. `function` must be pure: it runs again in the
    backward pass.

    Args:
        function: logits [C, V] and their slice of tokens to a tuple of per-token tensors [C, ...].
        hidden_NH: [N, H].
        head: the output layer.
        slice_tokens: tokens per slice; by default as many as keep a slice within `SLICE_ELEMENTS`.

    Returns:
        The outputs of `function`, concatenated over tokens.
    """
    if hidden_NH.ndim != 2 or hidden_NH.shape[1] != head.weight.shape[1]:
        raise ValueError(f"hidden must be [N, {head.weight.shape[1]}] for this head, got {tuple(hidden_NH.shape)}")
    if slice_tokens is None:
        slice_tokens = max(1, SLICE_ELEMENTS // head.vocab_size)
    return _OverVocabulary.apply(hidden_NH, head.weight, head.bias, head, function, slice_tokens)  # type: ignore[no-any-return]


def sampled_logps(
    hidden_NH: Tensor, head: Head, token_ids_N: Tensor, *, slice_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of the distribution it was drawn from, both [N], in nats.

    >>> head = Head(torch.zeros(4, 2))
    >>> logp, entropy = sampled_logps(torch.ones(1, 2), head, torch.tensor([3]))
    >>> bool(torch.isclose(-logp, entropy)), round(logp.item(), 4)
    (True, -1.3863)
    """

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
    """
    limit = head.vocab_size if vocab_limit is None else min(vocab_limit, head.vocab_size)
    if not 1 <= k <= limit:
        raise ValueError(f"k is {k}; it must be between 1 and the shared vocabulary of {limit} entries")

    def topk(logits_CV: Tensor, tokens: slice) -> tuple[Tensor, Tensor]:
        return topk_of(logps_of(logits_CV), k, limit)

    with torch.no_grad():
        ids_NK, logp_NK = over_vocabulary(topk, hidden_NH, head, slice_tokens=slice_tokens)
    return ids_NK, logp_NK


def logps_of(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N, V] from ready logits, in float32 (float64 for float64 logits).

    With `gather_logps`, `entropy_of` and `topk_of` this is the plain path that the sliced one is held to.
    """
    return F.log_softmax(logits_NV.to(_wide(logits_NV.dtype)) / temperature, dim=-1)


def topk_of(logps_NV: Tensor, k: int, vocab_limit: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of the k likeliest among the first `vocab_limit` entries."""
    top = logps_NV[:, :vocab_limit].topk(k, dim=-1)
    return top.indices, top.values


def gather_logps(logps_NV: Tensor, token_ids_N: Tensor) -> Tensor:
    """Log-probability of one token per row, [N]."""
    return logps_NV.gather(-1, token_ids_N.unsqueeze(-1)).squeeze(-1)


def entropy_of(logps_NV: Tensor) -> Tensor:
    """Entropy H = −Σ π log π per row, [N], in nats; impossible tokens (−inf) count as 0·log 0 = 0."""
    return -(logps_NV.exp() * logps_NV.masked_fill(logps_NV == -torch.inf, 0.0)).sum(-1)


class _OverVocabulary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight, bias, head, function, slice_tokens):  # type: ignore[override]
        ctx.save_for_backward(hidden_NH, weight, bias)
        ctx.head, ctx.function, ctx.slice_tokens = head, function, slice_tokens
        parts = [
            function(head.transform(_project(hidden_NH[tokens], weight, bias)), tokens)
            for tokens in _slices(hidden_NH.shape[0], slice_tokens)
        ]
        outputs = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*[output for output in outputs if not output.is_floating_point()])
        return outputs

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        hidden_NH, weight, bias = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden_NH) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=_wide(bias.dtype)) if needs_bias else None
        for tokens in _slices(hidden_NH.shape[0], ctx.slice_tokens):
            hidden_CH = hidden_NH[tokens]
            raw_grad_CV = _raw_logit_grad(ctx, hidden_CH, weight, bias, tokens, [grad[tokens] for grad in grads])
            if raw_grad_CV is None:
                continue
            if grad_hidden is not None:
                grad_hidden[tokens] = _matmul(raw_grad_CV.to(weight.dtype), weight).to(grad_hidden.dtype)
            if grad_weight is not None:
                _accumulate(grad_weight, raw_grad_CV, hidden_CH)
            if grad_bias is not None:
                grad_bias += raw_grad_CV.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _raw_logit_grad(ctx, hidden_CH, weight, bias, tokens, grads) -> Tensor | None:
    """Gradient of one slice's raw logits, or `None` where every upstream gradient is zero (nothing to project)."""
    if not any(bool(grad.any()) for grad in grads if grad.is_floating_point()):
        return None
    with torch.enable_grad():
        raw_CV = _project(hidden_CH.detach(), weight.detach(), None if bias is None else bias.detach())
        raw_CV.requires_grad_(True)
        outputs = ctx.function(ctx.head.transform(raw_CV), tokens)
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
    if not pairs:
        return None
    return torch.autograd.grad([out for out, _ in pairs], raw_CV, [grad for _, grad in pairs])[0]


def _slices(num_tokens: int, slice_tokens: int) -> list[slice]:
    # One empty slice for no tokens at all: the outputs keep their shapes and dtypes.
    return [slice(start, start + slice_tokens) for start in range(0, max(num_tokens, 1), slice_tokens)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _project(hidden_NH: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    raw = _matmul(hidden_NH.to(weight.dtype), weight.t())
    return raw if bias is None else raw + bias.to(raw.dtype)


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, accumulated and returned in float32 (float64 for float64), never rounded to half precision."""
    if left.is_cuda and left.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(left, right, out_dtype=torch.float32)
    wide = _wide(left.dtype)
    return left.to(wide) @ right.to(wide)


def _accumulate(grad_weight: Tensor, raw_grad_CV: Tensor, hidden_CH: Tensor) -> None:
    """grad_weight += raw_gradᵀ @ hidden, without rounding a slice's product to half precision first."""
    if hidden_CH.is_cuda and hidden_CH.dtype in (torch.float16, torch.bfloat16):
        left = raw_grad_CV.t().to(hidden_CH.dtype)
        torch.addmm(grad_weight, left, hidden_CH, out_dtype=torch.float32, out=grad_weight)
    else:
        grad_weight.addmm_(raw_grad_CV.t().to(grad_weight.dtype), hidden_CH.to(grad_weight.dtype))
