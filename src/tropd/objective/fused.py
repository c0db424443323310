"""The loss and its gradients in one pass over the student's head: no logits are projected twice.

What a token weighs in the loss is known before the student's forward pass (the signals are detached and the counts
global), so the gradient of a slice's logits can be formed while the slice is there. For everything that reads
log-probabilities of selected tokens j alone (the sampled one, the teacher's top-k), with g_j = ∂loss/∂log π_j and
a = logit_scale / temperature,

    ∂loss/∂raw = a · (Σ_j g_j e_j − (Σ_j g_j) π_S)        and, with a softcap, · (1 − tanh²)

The g_j come from autograd on the small [C, 1 + K] problem, through the same functions as the per-token path
(`student_terms`, `token_losses`, `reduce_losses`), which this one is held to. A full-vocabulary divergence is
differentiated by autograd on a few rows at a time, its teacher projected once.

Three products of the student's head then make the whole of it: logits, states' gradient, weight's gradient. Beyond
inputs and outputs there are one slice of logits (two of half the tokens with a second distribution or a softcap), and
the weight's gradient in float32, which waits for the backward pass.

Shapes: N tokens, C of one slice, R rows of one block, H hidden size, V vocabulary, K alternatives.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .head import (
    Head,
    HeadGradients,
    check_states,
    default_slice_tokens,
    gather_logps,
    needs_gradient,
    slice_buffer,
)
from .loss import DirectTerm, FullVocabularyTerm, TokenLosses, TokenSignals, TopKTerm, learned_from, token_losses
from .methods import Method
from .products import blocks_of, project_into, slices_of
from .reduce import RegionCounts, reduce_losses


class FusedLoss(NamedTuple):
    """The scalar loss, differentiable once, and detached per-token values [N].

    A tuple, since FSDP and DDP look for the loss in what a model's forward returns.

    Attributes:
        loss: what `reduce_losses` makes of the regions' losses.
        student_logp: log π_S of each token; NaN where the token was left out of the pass.
        direct: the direct term, zero where the method has none.
        topk_mass: the student's mass on the tokens that the direct term compares.
        trust: the loss in the trust region; likewise `outlier`, `guidance` and `reward`.
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
    """
    check_states(hidden_NH, head)
    if slice_tokens is None:
        slice_tokens = default_slice_tokens(head.vocab_size)
    task = _Task(method, signals, counts, token_ids_N, direct, slice_tokens)
    kept = None if every_token else _kept_tokens(task)
    if kept is not None:
        hidden_NH, task = hidden_NH.index_select(0, kept), task.of(kept)
    outputs = _Fused.apply(hidden_NH, head.weight, head.bias, head, task, needs_gradient(hidden_NH, head))
    return FusedLoss(*outputs) if kept is None else _spread(FusedLoss(*outputs), kept, token_ids_N.numel())


@dataclass(frozen=True)
class _Task:
    """What is asked of N tokens; see `fused_loss`."""

    method: Method
    signals: TokenSignals
    counts: RegionCounts
    token_ids: Tensor
    direct: DirectTerm | None
    slice_tokens: int

    def of(self, kept_M: Tensor) -> "_Task":
        """The task of some of the tokens, which all tokens of the direct term are among."""
        direct = self.direct
        if direct is not None:
            direct = replace(direct, index=torch.searchsorted(kept_M, direct.index))  # type: ignore[type-var]
        return replace(self, signals=self.signals[kept_M], token_ids=self.token_ids[kept_M], direct=direct)


def _kept_tokens(task: _Task) -> Tensor | None:
    """Sorted positions of the tokens that the loss or the direct term reads; `None` where these are all."""
    read = learned_from(task.method, task.signals)
    if task.direct is not None:
        read = read.index_fill(0, task.direct.index, True)
    kept = read.nonzero().squeeze(-1)
    return None if kept.numel() == read.numel() else kept


def _spread(terms: FusedLoss, kept_M: Tensor, num_tokens: int) -> FusedLoss:
    """Per-token values [M] back at their places among N tokens."""

    def spread(values_M: Tensor, rest: float = 0.0) -> Tensor:
        return values_M.new_full((num_tokens,), rest).index_copy(0, kept_M, values_M)

    loss, student_logp, *others = terms
    return FusedLoss(loss, spread(student_logp, torch.nan), *map(spread, others))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight, bias, head, task, with_gradient):  # type: ignore[override]
        needs = ctx.needs_input_grad[:3] if with_gradient else (False, False, False)
        ctx.set_materialize_grads(False)
        ctx.gradients = HeadGradients(hidden_NH, weight, bias, needs) if any(needs) else None
        columns = zip(*_slice_by_slice(hidden_NH, head, task, ctx.gradients), strict=True)
        values = [torch.cat(column) for column in columns]
        loss = reduce_losses(TokenLosses(*values[3:]), task.counts, task.method.reduction)
        ctx.mark_non_differentiable(*values)
        return loss, *values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "The gradients of this loss were handed out by an earlier backward pass and are no longer held; "
                "compute the loss again."
            )
        factor = float(grad_loss)
        if factor != 1.0:
            gradients.scale_(factor)  # in place: nobody else holds them
        return (*gradients.finished(), None, None, None)


def _slice_by_slice(
    hidden_NH: Tensor, head: Head, task: _Task, gradients: HeadGradients | None
) -> list[tuple[Tensor, ...]]:
    """Per-token values of every slice, and the slices' gradients added to `gradients`."""
    work = _SelectedTokens if _reads_selected_tokens(task.direct) else _WholeDistributions
    two_buffers = work is _WholeDistributions or head.softcap is not None
    slices = slices_of(hidden_NH.shape[0], max(1, task.slice_tokens // 2) if two_buffers else task.slice_tokens)
    raw_CV, worker = slice_buffer(head.weight, slices), work(head, task, slices)
    parts = []
    for tokens in slices:
        here_CV = project_into(raw_CV[: tokens.stop - tokens.start], hidden_NH[tokens], head.weight, head.bias)
        values, raw_grad_CV = worker(here_CV, tokens, with_gradient=gradients is not None)
        parts.append(values)
        if gradients is not None:
            gradients.add(tokens, raw_grad_CV)
    return parts


def _reads_selected_tokens(direct: DirectTerm | None) -> bool:
    return direct is None or isinstance(direct, TopKTerm)


class _Worker:
    """Turns the raw logits of one slice into per-token values, and into the loss's gradient in their place."""

    def __init__(self, head: Head, task: _Task, slices: list[slice]):
        self.head, self.task = head, task
        # One copy to the host for all slices.
        self._bounds = None if task.direct is None else task.direct.index.cpu()

    def direct_rows(self, tokens: slice) -> tuple[slice, Tensor | None]:
        """Which entries of the direct term fall into `tokens`, and at which of its rows; `None` for no entry."""
        if self._bounds is None:
            return slice(0, 0), None
        start, stop = torch.searchsorted(self._bounds, torch.tensor([tokens.start, tokens.stop])).tolist()
        assert self.task.direct is not None
        rows = None if start == stop else self.task.direct.index[start:stop] - tokens.start
        return slice(start, stop), rows

    def losses(self, tokens: slice, student_logp: Tensor, direct: Tensor) -> tuple[TokenLosses, Tensor]:
        """The tokens' losses, and what they add to the scalar."""
        task = self.task
        losses = token_losses(task.method, task.signals[tokens], student_logp, direct)
        return losses, reduce_losses(losses, task.counts, task.method.reduction)


class _SelectedTokens(_Worker):
    """Sampled tokens and the teacher's top-k: the closed form at the head of this file, in place."""

    def __init__(self, head: Head, task: _Task, slices: list[slice]):
        super().__init__(head, task, slices)
        self._capped_CV = None if head.softcap is None else slice_buffer(head.weight, slices)

    def __call__(self, raw_CV: Tensor, tokens: slice, *, with_gradient: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        ids, (entries, rows) = self.task.token_ids[tokens], self.direct_rows(tokens)
        logits_CV, factor, slope_CV = self._transform_(raw_CV)
        logits_CV -= logits_CV.amax(-1, keepdim=True)
        sampled = gather_logps(logits_CV, ids)
        place, alternatives = None, None
        if rows is not None:
            assert isinstance(self.task.direct, TopKTerm)
            place = rows.unsqueeze(-1), self.task.direct.token_ids[entries].long()
            alternatives = logits_CV[place]
        sums = logits_CV.exp_().sum(-1)
        sampled = sampled - sums.log()
        if place is not None and alternatives is not None:
            alternatives = alternatives - sums.log()[place[0]]
        values, grads = self._small_problem(tokens, sampled, alternatives, rows, entries, with_gradient)
        if grads is not None:
            _logit_gradient_(logits_CV, sums, factor, ids, place, *grads)
            if slope_CV is not None:
                logits_CV *= slope_CV
        return values, logits_CV

    def _transform_(self, raw_CV: Tensor) -> tuple[Tensor, float, Tensor | None]:
        """Logits, the constant factor of their derivative in `raw_CV`, and its factor by entry where there is one."""
        head = self.head
        factor = head.logit_scale / head.temperature
        if head.softcap is None or self._capped_CV is None:
            return raw_CV if factor == 1.0 else raw_CV.mul_(factor), factor, None
        tanh_CV = raw_CV.mul_(head.logit_scale / head.softcap).tanh_()
        capped_CV = torch.mul(tanh_CV, head.softcap / head.temperature, out=self._capped_CV[: raw_CV.shape[0]])
        return capped_CV, factor, tanh_CV.square_().neg_().add_(1.0)

    def _small_problem(self, tokens, sampled, alternatives, rows, entries, with_gradient):
        """Per-token values from the selected log-probabilities, and the loss's gradients in these."""
        leaves = [leaf.requires_grad_(with_gradient) for leaf in (sampled, alternatives) if leaf is not None]
        with torch.set_grad_enabled(with_gradient):
            direct = mass = torch.zeros_like(sampled)
            if alternatives is not None:
                assert isinstance(self.task.direct, TopKTerm)
                value, part = self.task.direct.of_selected(alternatives, entries)
                direct, mass = direct.index_put((rows,), value), mass.index_put((rows,), part)
            losses, total = self.losses(tokens, sampled, direct)
        grads = torch.autograd.grad(total, leaves, materialize_grads=True) if with_gradient else None
        return _detached(sampled, direct, mass, losses), grads


def _logit_gradient_(exp_CV, sums_C, factor, ids_C, place, sampled_grad_C, alternatives_grad_MK=None) -> None:
    """exp_CV, whose rows sum to `sums_C`, becomes factor · (Σ_j g_j e_j − (Σ_j g_j) π)."""
    total = sampled_grad_C
    if place is not None:
        total = total.index_add(0, place[0].squeeze(-1), alternatives_grad_MK.sum(-1))
    exp_CV *= (-factor * total / sums_C).unsqueeze(-1)
    exp_CV.scatter_add_(1, ids_C.unsqueeze(-1), (factor * sampled_grad_C).unsqueeze(-1))
    if place is not None:
        exp_CV.index_put_(place, factor * alternatives_grad_MK, accumulate=True)


class _WholeDistributions(_Worker):
    """Any direct term, by autograd on blocks of rows that fit the cache; the teacher is projected once a slice."""

    def __init__(self, head: Head, task: _Task, slices: list[slice]):
        super().__init__(head, task, slices)
        self._teacher_CV = (
            slice_buffer(task.direct.teacher_head.weight, slices)
            if isinstance(task.direct, FullVocabularyTerm)
            else None
        )

    def __call__(self, raw_CV: Tensor, tokens: slice, *, with_gradient: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        entries, _ = self.direct_rows(tokens)
        teacher_CV = self._project_teacher(entries)
        parts = []
        for block in blocks_of(raw_CV):
            place = slice(tokens.start + block.start, tokens.start + block.stop)
            parts.append(self._block(raw_CV[block], place, teacher_CV, entries.start, with_gradient))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True)), raw_CV

    def _project_teacher(self, entries: slice) -> Tensor | None:
        term = self.task.direct
        if self._teacher_CV is None or not isinstance(term, FullVocabularyTerm):
            return None
        head, room = term.teacher_head, self._teacher_CV[: entries.stop - entries.start]
        return project_into(room, term.teacher_hidden[entries], head.weight, head.bias)

    def _block(self, raw_RV, tokens: slice, teacher_CV, first_entry: int, with_gradient: bool) -> tuple[Tensor, ...]:
        entries, rows = self.direct_rows(tokens)
        with torch.set_grad_enabled(with_gradient):
            leaf_RV = raw_RV.detach().requires_grad_(with_gradient)
            logps_RV = F.log_softmax(self.head.transform(leaf_RV), dim=-1)
            sampled = gather_logps(logps_RV, self.task.token_ids[tokens])
            direct = mass = torch.zeros_like(sampled)
            if rows is not None:
                compared = logps_RV if rows.numel() == len(raw_RV) else logps_RV[rows]
                value, part = self._direct(compared, entries, teacher_CV, first_entry)
                direct, mass = direct.index_put((rows,), value), mass.index_put((rows,), part)
            losses, total = self.losses(tokens, sampled, direct)
        if with_gradient:
            (grad_RV,) = torch.autograd.grad(total, leaf_RV)
            raw_RV.copy_(grad_RV)
        return _detached(sampled, direct, mass, losses)

    def _direct(self, logps_CV: Tensor, entries: slice, teacher_CV: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
        term = self.task.direct
        if teacher_CV is None or not isinstance(term, FullVocabularyTerm):
            assert term is not None
            return term(logps_CV, entries)
        here_CV = teacher_CV[entries.start - first : entries.stop - first]
        return term.of_logits(logps_CV, term.teacher_head.transform(here_CV))


def _detached(sampled: Tensor, direct: Tensor, mass: Tensor, losses: TokenLosses) -> tuple[Tensor, ...]:
    """In the order of `FusedLoss`."""
    values = (sampled, direct, mass, losses.trust, losses.outlier, losses.guidance, losses.reward)
    return tuple(value.detach() for value in values)
