"""What becomes of one slice of logits in the fused loss: per-token values, and the loss's gradient in their place.

Three kinds, each the quickest for what the loss reads: `SelectedTokens` (the sampled token, the teacher's top-k),
`Divergence` (a generalised JSD on every token and nothing else), `WholeDistributions` (anything, by autograd).

Shapes: C tokens of one slice, R rows of one block, M entries of the direct term, V vocabulary, K alternatives.
"""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..divergences import generalized_jsd
from ..endings import merge_, spread_
from ..loss import (
    LEAST_TAIL,
    DirectTerm,
    FullVocabularyTerm,
    SeveralTerms,
    TokenSignals,
    TopKTerm,
    reindex_term,
    restrict_term,
    token_losses,
)
from ..methods import Method
from ..reduce import RegionCounts, reduce_losses
from .layer import Head, Scratch, gather_logps, slice_buffer
from .matmul import blocks_of, project_into


@dataclass(frozen=True)
class LossInputs:
    """What the loss of N tokens is made from; see `fused_loss`."""

    method: Method
    signals: TokenSignals
    counts: RegionCounts
    token_ids: Tensor
    direct: DirectTerm | None
    slice_tokens: int | None

    def select(self, kept_M: Tensor) -> "LossInputs":
        """The inputs of some of the tokens, in that order; all tokens of the direct term are among them."""
        place_N = torch.empty_like(self.token_ids)
        place_N[kept_M] = torch.arange(kept_M.numel(), device=kept_M.device)
        direct = reindex_term(self.direct, place_N)
        return replace(self, signals=self.signals[kept_M], token_ids=self.token_ids[kept_M], direct=direct)

    def order_by_term(self, kept_M: Tensor) -> Tensor:
        """Sorted positions so ordered that those of each of several direct terms stand together; see `runs`."""
        if not isinstance(self.direct, SeveralTerms):
            return kept_M
        owner_N = torch.zeros_like(self.token_ids)
        for number, term in enumerate(self.direct.terms):
            owner_N[term.index] = number
        return kept_M[owner_N[kept_M].argsort(stable=True)]

    def runs(self) -> list[tuple[slice, "LossInputs"]]:
        """Runs of tokens that read one direct term each, and their inputs; tokens without any are in the first."""
        num_tokens = self.token_ids.numel()
        if not isinstance(self.direct, SeveralTerms):
            return [(slice(0, num_tokens), self)]
        terms = [term for term in self.direct.terms if term.index.numel()] or [self.direct.terms[0]]
        bounds = [0, *(int(term.index[0]) for term in terms[1:]), num_tokens]
        runs = [slice(start, stop) for start, stop in pairwise(bounds)]
        parts = []
        for run, term in zip(runs, terms, strict=True):
            direct = restrict_term(term, run)
            parts.append((run, replace(self, signals=self.signals[run], token_ids=self.token_ids[run], direct=direct)))
        return parts


class SliceLoss(ABC):
    """Turns the raw logits of one slice into per-token values, and into the loss's gradient in their place.

    Args:
        head: the student's output layer.
        inputs: what the tokens' losses are made from.
        slices: all slices that will come, for the buffers that are kept between them.
    """

    def __init__(self, head: Head, inputs: LossInputs, slices: list[slice]):
        self.head, self.inputs = head, inputs
        # One copy to the host for all slices.
        self._bounds = None if inputs.direct is None else inputs.direct.index.cpu()
        # Beside the student's raw logits: the teacher's, or what a softcap makes of them.
        term, beside = inputs.direct, None if head.softcap is None else head
        beside = term.teacher_head if isinstance(term, FullVocabularyTerm) else beside
        self._beside_CV = None if beside is None else slice_buffer(beside.weight, slices)

    @abstractmethod
    def __call__(self, raw_CV: Tensor, tokens: slice, *, with_gradient: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """Values in the order of `FusedLoss`, and the raw logits' gradient where one is wanted; overwrites `raw_CV`."""

    def direct_rows(self, tokens: slice) -> tuple[slice, Tensor | None]:
        """Which entries of the direct term fall into `tokens`, and at which of its rows; `None` for no entry."""
        if self._bounds is None:
            return slice(0, 0), None
        start, stop = torch.searchsorted(self._bounds, torch.tensor([tokens.start, tokens.stop])).tolist()
        assert self.inputs.direct is not None
        rows = None if start == stop else self.inputs.direct.index[start:stop] - tokens.start
        return slice(start, stop), rows

    def losses(
        self, tokens: slice, student_logp: Tensor, direct: Tensor, mass: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The tokens' values in the order of `FusedLoss`, detached, and what their losses add to the scalar."""
        inputs = self.inputs
        losses = token_losses(inputs.method, inputs.signals[tokens], student_logp, direct)
        values = (student_logp, direct, mass, losses.trust, losses.outlier, losses.guidance, losses.reward)
        total = reduce_losses(losses, inputs.counts, inputs.method.reduction)
        return tuple(value.detach() for value in values), total


class SelectedTokens(SliceLoss):
    """Sampled tokens and the teacher's top-k: the closed form at the head of `fused_loss`, in place.

    A divergence of whole distributions is read, too, where it is a baseline and there is no softcap, which needs room
    of its own: nothing is differentiated through it.
    """

    def __call__(self, raw_CV: Tensor, tokens: slice, *, with_gradient: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        head, ids, term = self.head, self.inputs.token_ids[tokens], self.inputs.direct
        factor, slope_CV = head.logit_scale / head.temperature, None  # of the logits' derivative in `raw_CV`
        if head.softcap is None or self._beside_CV is None:
            logits_CV = raw_CV if factor == 1.0 else raw_CV.mul_(factor)
        else:
            tanh_CV = raw_CV.mul_(head.logit_scale / head.softcap).tanh_()
            logits_CV = torch.mul(tanh_CV, head.softcap / head.temperature, out=self._beside_CV[: raw_CV.shape[0]])
            slope_CV = tanh_CV.square_().neg_().add_(1.0)
        shares_CE = merge_(logits_CV, head.endings) if len(head.endings) > 1 else None
        logits_CV -= logits_CV.amax(-1, keepdim=True)
        sampled = gather_logps(logits_CV, ids)
        entries, rows = self.direct_rows(tokens)
        place = alternatives = tail_sums = tail = baseline = None
        if rows is not None and isinstance(term, FullVocabularyTerm):
            baseline = self._compare(logits_CV, rows, entries, term)
        elif rows is not None:
            assert isinstance(term, TopKTerm)
            place = rows.unsqueeze(-1), term.token_ids[entries].long()
            alternatives = logits_CV[place]
        sums = logits_CV.exp_().sum(-1)
        sampled = sampled - sums.log()
        if alternatives is not None and place is not None and isinstance(term, TopKTerm):
            alternatives = alternatives - sums.log()[place[0]]
            if term.reads_tail:
                tail_sums = _sums_outside(logits_CV, place)
                tail = (tail_sums.log() - sums[rows].log()).clamp_min(LEAST_TAIL)
        # Of so few numbers autograd finds the gradient.
        leaves = [leaf.requires_grad_(with_gradient) for leaf in (sampled, alternatives, tail) if leaf is not None]
        with torch.set_grad_enabled(with_gradient):
            compared = baseline
            if alternatives is not None and isinstance(term, TopKTerm):
                compared = term.of_selected(alternatives, entries, tail)
            direct = mass = nothing = torch.zeros_like(sampled)
            if compared is not None:
                direct, mass = (nothing.index_put((rows,), part) for part in compared)
            values, total = self.losses(tokens, sampled, direct, mass)
        if not with_gradient:
            return values, logits_CV
        grads = torch.autograd.grad(total, leaves, materialize_grads=True)
        if tail is not None:
            grads = (*grads[:2], torch.where(tail > LEAST_TAIL, grads[2], 0.0))
        _logit_gradient_(logits_CV, sums, factor, ids, place, tail_sums, *grads)
        if shares_CE is not None:
            spread_(logits_CV, head.endings, shares_CE)
        return values, logits_CV if slope_CV is None else logits_CV.mul_(slope_CV)

    @torch.no_grad()
    def _compare(
        self, logits_CV: Tensor, rows: Tensor, entries: slice, term: FullVocabularyTerm
    ) -> tuple[Tensor, Tensor]:
        """The divergences of the term's `entries`, and the masses compared, [M]; a few rows at a time."""
        assert self._beside_CV is not None
        head, room_CV = term.teacher_head, self._beside_CV[: entries.stop - entries.start]
        teacher_CV = project_into(room_CV, term.teacher_hidden[entries], head.weight, head.bias)
        parts = []
        for block in blocks_of(teacher_CV):
            here = slice(entries.start + block.start, entries.start + block.stop)
            logps_RV = F.log_softmax(logits_CV[rows[block]], dim=-1)
            parts.append(term.of_logits(logps_RV, head.transform(teacher_CV[block]), here))
        values, masses = (torch.cat(column) for column in zip(*parts, strict=True))
        return values, masses


def _sums_outside(exp_CV: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
    """[M], the sum of each row of `place` over all other tokens than those: added up, not what is left of the whole."""
    inside = exp_CV[place]
    exp_CV[place] = 0.0
    outside = exp_CV.sum(-1)[place[0].squeeze(-1)]
    exp_CV[place] = inside
    return outside


def _logit_gradient_(
    exp_CV: Tensor,
    sums_C: Tensor,
    factor: float,
    ids_C: Tensor,
    place: tuple[Tensor, Tensor] | None,
    tail_sums_M: Tensor | None,
    sampled_grad_C: Tensor,
    topk_grad_MK: Tensor | None = None,
    tail_grad_M: Tensor | None = None,
) -> None:
    """exp_CV, whose rows sum to `sums_C`, becomes factor · (Σ_j g_j e_j − (Σ_j g_j) π).

    A tail of mass T is one more j: its e_j is π/T outside of the top-k, and 0 in it.
    """
    total = sampled_grad_C
    if place is not None and topk_grad_MK is not None:
        total = total.index_add(0, place[0].squeeze(-1), topk_grad_MK.sum(-1))
    weight_C = -factor * total / sums_C
    if tail_grad_M is None or tail_sums_M is None or place is None:
        exp_CV *= weight_C.unsqueeze(-1)
    else:
        rows, share_M = place[0].squeeze(-1), torch.where(tail_grad_M == 0, 0.0, tail_grad_M / tail_sums_M)
        weight_C = weight_C.index_add(0, rows, -factor * tail_grad_M / sums_C[rows])
        # Apart from the rest: what is left of a share of 1e9 after that share would be rounding.
        inside_MK = exp_CV[place] * weight_C[rows].unsqueeze(-1)
        exp_CV *= weight_C.index_add(0, rows, factor * share_M).unsqueeze(-1)
        exp_CV[place] = inside_MK
    exp_CV.scatter_add_(1, ids_C.unsqueeze(-1), (factor * sampled_grad_C).unsqueeze(-1))
    if place is not None and topk_grad_MK is not None:
        exp_CV.index_put_(place, factor * topk_grad_MK, accumulate=True)


class WholeDistributions(SliceLoss):
    """Any direct term, by autograd on blocks of rows that fit the cache; the teacher is projected once a slice."""

    def __call__(self, raw_CV: Tensor, tokens: slice, *, with_gradient: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        (entries, _), term, teacher_CV = self.direct_rows(tokens), self.inputs.direct, None
        if isinstance(term, FullVocabularyTerm) and self._beside_CV is not None:
            head, room_CV = term.teacher_head, self._beside_CV[: entries.stop - entries.start]
            teacher_CV = project_into(room_CV, term.teacher_hidden[entries], head.weight, head.bias)
        # Written where there is room already: small results kept between large temporaries would scatter the heap.
        values = raw_CV.new_empty(3, raw_CV.shape[0])
        for block in blocks_of(raw_CV):
            place = slice(tokens.start + block.start, tokens.start + block.stop)
            self._block_(raw_CV[block], values[:, block], place, teacher_CV, entries.start, with_gradient)
        return self.losses(tokens, *values)[0], raw_CV

    def _block_(
        self,
        raw_RV: Tensor,
        values_R: Tensor,
        tokens: slice,
        teacher_CV: Tensor | None,
        first_entry: int,
        with_gradient: bool,
    ) -> None:
        entries, rows = self.direct_rows(tokens)
        with torch.set_grad_enabled(with_gradient):
            leaf_RV = raw_RV.detach().requires_grad_(with_gradient)
            logps_RV = F.log_softmax(self.head.transform(leaf_RV), dim=-1)
            sampled = gather_logps(logps_RV, self.inputs.token_ids[tokens])
            direct = mass = torch.zeros_like(sampled)
            if rows is not None:
                compared = logps_RV if rows.numel() == len(raw_RV) else logps_RV[rows]
                value, part = self._direct(compared, entries, teacher_CV, first_entry)
                direct, mass = direct.index_put((rows,), value), mass.index_put((rows,), part)
            _, total = self.losses(tokens, sampled, direct, mass)
        if with_gradient:
            raw_RV.copy_(torch.autograd.grad(total, leaf_RV)[0])
        for row, value in zip(values_R, (sampled, direct, mass), strict=True):
            row.copy_(value.detach())

    def _direct(self, logps_CV: Tensor, entries: slice, teacher_CV: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
        term = self.inputs.direct
        if teacher_CV is None or not isinstance(term, FullVocabularyTerm):
            assert term is not None
            return term(logps_CV, entries)
        here_CV = teacher_CV[entries.start - first : entries.stop - first]
        return term.of_logits(logps_CV, term.teacher_head.transform(here_CV), entries)


class Divergence(SliceLoss):
    """JSD_β on every token and nothing else, in closed form: with d the token's weight and p = π_S, q = π_T,

        β = 1   d · p (f − Σ p f)            f = log p − log q
        β = 0   d · (p − q)
        else    d · (1 − β) p (f − Σ p f)    f = log p − log(β q + (1 − β) p)

    is the gradient in the logits (GKD). Works on a few rows at a time, in place.
    """

    def __init__(self, head: Head, inputs: LossInputs, slices: list[slice]):
        super().__init__(head, inputs, slices)
        assert isinstance(inputs.direct, FullVocabularyTerm)
        self._term = inputs.direct
        self._apart = replace(head, endings=())  # they are merged here, where what each had is known
        self._beta = _beta_of(self._term)
        self._scratches = Scratch(), Scratch()

    @staticmethod
    def can(head: Head, inputs: LossInputs) -> bool:
        """Does the loss read one divergence for each token, on one support, from logits that are finite?"""
        term = inputs.direct
        return (
            isinstance(term, FullVocabularyTerm)
            and _beta_of(term) is not None
            and inputs.method.trust == "gkd"
            and inputs.signals.reward_advantage is None
            and term.index.numel() == inputs.token_ids.numel()
            and head.vocab_size <= term.teacher_head.vocab_size
            and head.softcap is None
            and all(h.bias is None or bool(h.bias.isfinite().all()) for h in (head, term.teacher_head))
        )

    def __call__(self, raw_CV: Tensor, tokens: slice, *, with_gradient: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        assert self._beside_CV is not None
        teacher, buffer = self._term.teacher_head, self._beside_CV[: raw_CV.shape[0]]
        project_into(buffer, self._term.teacher_hidden[tokens], teacher.weight, teacher.bias)
        sampled, values, factors = columns = raw_CV.new_empty(3, raw_CV.shape[0])
        for rows in blocks_of(raw_CV):
            here = self._block_(raw_CV[rows], buffer[rows], tokens.start + rows.start)
            columns[:, rows] = torch.stack(here)
        values = values.clone().requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            detached, total = self.losses(tokens, sampled, values, torch.ones_like(values))
        if with_gradient:
            (weights,) = torch.autograd.grad(total, values)
            factors = factors * weights * (self.head.logit_scale / self.head.temperature)
            raw_CV *= factors.unsqueeze(-1)
        return detached, raw_CV

    def _block_(self, raw_RV: Tensor, teacher_raw_RV: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs of the sampled tokens and divergences, [R]; `raw_RV` times what comes third is their gradient."""
        student_exp, teacher_exp = (scratch.for_rows(raw_RV) for scratch in self._scratches)
        student, endings = self._apart.transform(raw_RV), self.head.endings
        shares_RE = merge_(student, endings) if len(endings) > 1 else None
        student_sums = _shift_(student, student_exp)
        # In the student's precision, from the entries that both vocabularies have.
        teacher = self._term.teacher_head.transform(teacher_raw_RV[:, : student.shape[1]]).to(student.dtype)
        teacher_sums = _shift_(teacher, teacher_exp)
        ids = self.inputs.token_ids[first : first + len(raw_RV)]
        student_log_sums, teacher_log_sums = student_sums.log(), teacher_sums.log()
        sampled = gather_logps(student, ids) - student_log_sums.squeeze(-1)
        factor = torch.ones_like(student_sums)
        if self._beta == 0.0:
            student_exp /= student_sums
            teacher_exp /= teacher_sums
            value = teacher.sub_(student).mul_(teacher_exp).sum(-1, keepdim=True) + student_log_sums - teacher_log_sums
            torch.sub(student_exp, teacher_exp, out=raw_RV)
        elif self._beta == 1.0:
            gap = student.sub_(teacher).sub_(student_log_sums - teacher_log_sums)
            value = torch.mul(student_exp, gap, out=teacher_exp).sum(-1, keepdim=True) / student_sums
            # The mean is taken out twice: the first is rounded as a large gap is, whatever little remains.
            rest = torch.mul(student_exp, gap.sub_(value), out=teacher_exp).sum(-1, keepdim=True) / student_sums
            torch.mul(student_exp, gap.sub_(rest), out=raw_RV)
            factor = 1 / student_sums
        else:
            student_exp /= student_sums
            teacher_exp /= teacher_sums
            probs = student_exp, teacher_exp
            value = self._mixture_(probs, student.sub_(student_log_sums), teacher.sub_(teacher_log_sums), raw_RV)
        if shares_RE is not None:
            spread_(raw_RV, endings, shares_RE)
        return sampled, value.squeeze(-1), factor.squeeze(-1)

    def _mixture_(
        self, probs: tuple[Tensor, Tensor], student_logps: Tensor, teacher_logps: Tensor, gradient_RV: Tensor
    ) -> Tensor:
        beta, (student, teacher) = self._beta, probs
        assert beta is not None
        mixture = (beta * teacher).add_(student, alpha=1 - beta)
        # Where both underflow, their share is 0 whatever the logarithm.
        mixture.clamp_(min=torch.finfo(mixture.dtype).tiny).log_()
        teacher_part = teacher.mul_(teacher_logps.sub_(mixture)).sum(-1, keepdim=True)
        gap = student_logps.sub_(mixture)
        student_part = torch.mul(student, gap, out=teacher).sum(-1, keepdim=True)
        torch.mul(student, gap.sub_(student_part).mul_(1 - beta), out=gradient_RV)
        return beta * teacher_part + (1 - beta) * student_part


def _beta_of(term: FullVocabularyTerm) -> float | None:
    function = term.function
    known = isinstance(function, functools.partial) and function.func is generalized_jsd
    return function.keywords["beta"] if known else None  # type: ignore[attr-defined]


def _shift_(logits_RV: Tensor, exp_RV: Tensor) -> Tensor:
    """Shift each row's largest logit to 0; its exponentials go to `exp_RV`, their sums [R, 1] are returned."""
    logits_RV -= logits_RV.amax(-1, keepdim=True)
    return torch.exp(logits_RV, out=exp_RV).sum(-1, keepdim=True)
