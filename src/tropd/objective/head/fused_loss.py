"""The loss and its gradients in one pass over the student's head: no logits are projected twice.

What a token weighs in the loss is known before the student's forward pass (the signals are detached and the counts
global), so the gradient of a slice's logits can be formed while the slice is there. For everything that reads
log-probabilities of selected tokens j alone (the sampled one, the teacher's top-k), with g_j = ∂loss/∂log π_j and
a = logit_scale / temperature,

    ∂loss/∂raw = a · (Σ_j g_j e_j − (Σ_j g_j) π_S)        and, with a softcap, · (1 − tanh²)

The g_j come from autograd on the small [C, 1 + K] problem, through the same functions as the per-token path
(`student_terms`, `token_losses`, `reduce_losses`), which this one is held to. A full-vocabulary divergence has closed
forms of its own (`slice_losses`), its teacher projected once; what has none is differentiated by autograd on a few
rows at a time.

Three products of the student's head then make the whole of it: logits, states' gradient, weight's gradient. Beyond
inputs and outputs there are one slice of logits (two shorter ones with a second distribution or a softcap), and
the weight's gradient in float32, which waits for the backward pass.

Shapes: N tokens, C of one slice, R rows of one block, H hidden size, V vocabulary, K alternatives.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..endings import events_of
from ..loss import (
    DirectTerm,
    FullVocabularyTerm,
    SeveralTerms,
    TokenLosses,
    TokenSignals,
    TopKTerm,
    active_tokens,
)
from ..methods import Method
from ..reduce import RegionCounts, reduce_losses
from ..shapes import check_rows, check_same_shape
from .layer import Head, HeadGradients, needs_gradient, slice_buffer, slices_for
from .matmul import project_into
from .slice_losses import Divergence, LossInputs, SelectedTokens, SliceLoss, WholeDistributions


class FusedLoss(NamedTuple):
    """The scalar loss, differentiable once, and detached per-token values [N].

    A tuple, since FSDP and DDP look for the loss in what a model's forward returns.

    >>> FusedLoss(*torch.arange(8.0)).losses.trust
    tensor(4.)

    Attributes:
        loss: what `reduce_losses` makes of the regions' losses.
        student_logp: log π_S of each token; NaN where the token was left out of the pass.
        direct: the direct term, zero where the method has none.
        topk_mass: the student's mass on the tokens that the direct term compares.
        trust: the loss in the trust region; the same for `outlier`, `guidance` and `reward`.
    """

    loss: Tensor
    student_logp: Tensor
    direct: Tensor
    topk_mass: Tensor
    trust: Tensor
    outlier: Tensor
    guidance: Tensor
    reward: Tensor

    @property
    def losses(self) -> TokenLosses:
        return TokenLosses(self.trust, self.outlier, self.guidance, self.reward)


def fused_loss(
    hidden_NH: Tensor,
    head: Head,
    token_ids_N: Tensor,
    method: Method,
    signals: TokenSignals,
    counts: RegionCounts,
    direct: DirectTerm | None = None,
    *,
    every_token: bool = False,
    slice_tokens: int | None = None,
) -> FusedLoss:
    """The loss of N tokens under `method`, differentiable in `hidden_NH`, `head.weight` and `head.bias`.

    Equal to `student_terms`, `token_losses` and `reduce_losses` one after another. Gradients are computed here, in the
    forward pass, where anything needs them, and scaled and handed out by the backward pass, once.

    >>> from tropd import get_method
    >>> hidden, head, tokens = torch.ones(1, 2, requires_grad=True), Head(torch.zeros(4, 2)), torch.tensor([3])
    >>> rollout, one, none = torch.full((1,), 0.25).log(), torch.ones(1), torch.zeros(1)
    >>> signals = TokenSignals(rollout, rollout - 0.5, trust_weight=one, outlier_weight=none, guidance_mask=none)
    >>> round(fused_loss(hidden, head, tokens, get_method("opd"), signals, RegionCounts(1, 0, 0)).loss.item(), 4)
    0.5

    Args:
        hidden_NH: [N, H].
        head: the student's output layer, at the sampling temperature.
        token_ids_N: the tokens.
        method: the stage in force.
        signals: [N] each, detached.
        counts: token counts of the whole optimiser step.
        direct: the divergence to differentiate directly, or `None`.
        every_token: project tokens that cannot change the loss as well, for the sake of their `student_logp`.
        slice_tokens: tokens per slice.

    Raises:
        ValueError: states, tokens and signals do not fit together.
    """
    check_rows(token_ids_N, 1, hidden_NH=hidden_NH)
    check_same_shape(token_ids_N=token_ids_N, signals=signals.rollout_logp)
    inputs = LossInputs(method, signals, counts, events_of(token_ids_N, head.endings), direct, slice_tokens)
    read = torch.ones_like(token_ids_N, dtype=torch.bool) if every_token else active_tokens(method, signals)
    kept = (read if direct is None else read.index_fill(0, direct.index, True)).nonzero().squeeze(-1)
    in_order = kept.numel() == token_ids_N.numel() and not isinstance(direct, SeveralTerms)
    if not in_order:
        kept = inputs.order_by_term(kept)
        hidden_NH, inputs = hidden_NH.index_select(0, kept), inputs.select(kept)
    terms = FusedLoss(
        *_Fused.apply(  # type: ignore[no-untyped-call]
            hidden_NH, head.weight, head.bias, head, inputs, needs_gradient(hidden_NH, head)
        )
    )
    return terms if in_order else _spread(terms, kept, token_ids_N.numel())


def _spread(terms: FusedLoss, kept_M: Tensor, num_tokens: int) -> FusedLoss:
    """Per-token values [M] back at their places among N tokens."""

    def spread(values_M: Tensor, rest: float = 0.0) -> Tensor:
        return values_M.new_full((num_tokens,), rest).index_copy(0, kept_M, values_M)

    loss, student_logp, *others = terms
    return FusedLoss(loss, spread(student_logp, torch.nan), *map(spread, others))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        inputs: LossInputs,
        with_gradient: bool,
    ) -> tuple[Tensor, ...]:
        needs = ctx.needs_input_grad[:3] if with_gradient else (False, False, False)
        ctx.set_materialize_grads(False)
        gradients = ctx.gradients = HeadGradients(hidden_NH, weight, bias, needs) if any(needs) else None
        parts = []
        for run, of_run in inputs.runs():
            is_baseline = isinstance(of_run.direct, FullVocabularyTerm) and inputs.method.baseline == "full"
            kind: type[SliceLoss] = WholeDistributions
            if of_run.direct is None or isinstance(of_run.direct, TopKTerm) or (is_baseline and head.softcap is None):
                kind = SelectedTokens
            elif Divergence.can(head, of_run):
                kind = Divergence
            is_alone = kind is SelectedTokens and head.softcap is None and not is_baseline
            slices = slices_for(hidden_NH[run], head, inputs.slice_tokens, 1 if is_alone else 2)
            raw_CV, slice_loss = slice_buffer(weight, slices), kind(head, of_run, slices)
            for tokens in slices:
                place = slice(run.start + tokens.start, run.start + tokens.stop)
                here_CV = project_into(raw_CV[: tokens.stop - tokens.start], hidden_NH[place], weight, bias)
                values, raw_grad_CV = slice_loss(here_CV, tokens, with_gradient=gradients is not None)
                if gradients is not None:
                    gradients.add(place, raw_grad_CV)
                parts.append(values)
            del raw_CV, here_CV, raw_grad_CV, slice_loss  # else the next run's buffers would be beside them
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        loss = reduce_losses(TokenLosses(*columns[3:]), inputs.counts, inputs.method.reduction)
        ctx.mark_non_differentiable(*columns)
        return loss, *columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "An earlier backward pass has already used the gradients of this loss; compute the loss again."
            )
        return (*gradients.result(float(grad_loss)), None, None, None)
