"""From student, teacher and regions to one loss value per token; then, separately, to a scalar.

This is the oracle: `student_terms`, `token_losses` and `reduce.reduce_losses`, one after another, are the loss as it is
written, differentiated by autograd. Training runs `head.fused_loss`, which is quicker, calls the same `token_losses`,
and is held to this path in values and gradients.

Shapes: N response tokens of any number of sequences (student-written and prefix alike), M ≤ N of them with a direct
term, K the teacher's top-k, V vocabulary. Signals are detached numbers made when the batch was built; only the
student's terms carry gradient.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .divergences import (
    generalized_jsd,
    jsd_sampled_advantage,
    support_reverse_kl,
    topk_forward_kl,
    topk_jsd_teacher_part,
)
from .endings import events_of
from .head.layer import Head, gather_logps, over_vocabulary
from .methods import Method
from .policy_gradient import policy_gradient_loss, sampled_advantage
from .regions import in_support, union_of_supports
from .shapes import check_rows, check_same_shape


@dataclass(frozen=True)
class TokenSignals:
    """What is known about each token before the update; all [N], detached, finite.

    Three weights that sum to 1 on each token that is learned from, and are 0 on one that is left out: `trust_weight`,
    `outlier_weight` and `guidance_mask`. Under the `expected` gate a token has both of the first two.

    Attributes:
        rollout_logp: log π_old of the sampled token, at the sampling temperature.
        teacher_logp: log π_T of the same token, at the same temperature.
        trust_weight: weight of the trust region.
        outlier_weight: weight of the outlier region.
        guidance_mask: 1 on tokens of a teacher prefix.
        reward_advantage: weighted advantage of verifiable rewards, or `None`.
        turn_weight: factor of what is learned from the teacher, by the token's turn; `None` is 1. See `turns`.
        advantage_scale: factor of the K1 advantage of trusted tokens; `None` is 1. See `AdvantageScale`.

    Raises:
        ValueError: two of them differ in shape.

    >>> rollout, teacher = torch.tensor([-1.0, -0.5]), torch.tensor([-2.0, -0.5])
    >>> trust, rest = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> TokenSignals(rollout, teacher, trust, rest, guidance_mask=torch.zeros(2)).log_ratio
    tensor([-1.,  0.])
    """

    rollout_logp: Tensor
    teacher_logp: Tensor
    trust_weight: Tensor
    outlier_weight: Tensor
    guidance_mask: Tensor
    reward_advantage: Tensor | None = None
    turn_weight: Tensor | None = None
    advantage_scale: Tensor | None = None

    def __post_init__(self) -> None:
        check_same_shape(**{field.name: getattr(self, field.name) for field in fields(self)})

    @property
    def log_ratio(self) -> Tensor:
        """r = log π_T(x) − log π_old(x)."""
        return self.teacher_logp - self.rollout_logp

    def __getitem__(self, tokens: slice | Tensor) -> "TokenSignals":
        """The signals of some of the tokens."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[tokens] for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class TokenLosses:
    """Loss values to be minimised, per token [N], already weighted by the token's region.

    Raises:
        ValueError: two of them differ in shape.

    >>> TokenLosses(trust=torch.ones(2), outlier=torch.zeros(2), guidance=torch.zeros(2), reward=torch.zeros(2)).trust
    tensor([1., 1.])
    """

    trust: Tensor
    outlier: Tensor
    guidance: Tensor
    reward: Tensor

    def __post_init__(self) -> None:
        check_same_shape(trust=self.trust, outlier=self.outlier, guidance=self.guidance, reward=self.reward)


PolicyGradient = Callable[[Tensor, Tensor], Tensor]
"""(advantage [N], weight [N]) → the loss of each sampled token [N], weighted."""

LEAST_TAIL = -80.0
"""Nats: a tail with less mass than that counts as so much, and has no gradient: there is no token in it."""


class DirectTerm(Protocol):
    """A divergence that is differentiated directly, on the tokens `index` (sorted positions, [M]).

    A term of your own, which `student_terms` accepts; `fused_loss` differentiates it by autograd:

    >>> class Entropy:
    ...     def __init__(self, index):
    ...         self.index = index
    ...     def __call__(self, student_logps_CV, rows):
    ...         return -(student_logps_CV.exp() * student_logps_CV).sum(-1), torch.ones(len(student_logps_CV))
    >>> hidden, tokens, entropy = torch.ones(2, 3), torch.tensor([0, 1]), Entropy(torch.tensor([1]))
    >>> [round(value, 4) for value in student_terms(hidden, Head(torch.zeros(4, 3)), tokens, entropy)[1].tolist()]
    [0.0, 1.3863]
    """

    @property
    def index(self) -> Tensor:
        """[M], sorted."""
        ...

    def __call__(self, student_logps_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """For the entries `rows` of `index`: the values [C], and the student's mass [C] on the tokens compared."""
        ...


@dataclass(frozen=True)
class TopKTerm:
    """Terms of the teacher's top-k tokens: forward KL, reverse KL, or the direct half of the hybrid JSD.

    Attributes:
        index: [M] sorted positions among the N tokens.
        token_ids: [M, K].
        teacher_logp: [M, K], of the teacher's full softmax.
        function: (student_topk_logp [C, K], teacher_topk_logp [C, K]) → [C].
        reads_tail: `function` takes the log of the student's mass on all other tokens, [C], as well.
        outside: [M], is the sampled token none of the top-k? Likewise, after the mass, where it is not `None`.

    Raises:
        ValueError: ids and log-probabilities differ in shape, or are not [M, K]; or `outside` is not [M].

    >>> teacher = torch.tensor([[0.6, 0.2]]).log()
    >>> term = TopKTerm(torch.tensor([0]), torch.tensor([[2, 0]]), teacher, topk_forward_kl)
    >>> value, mass = term(torch.tensor([[0.2, 0.5, 0.3]]).log(), slice(0, 1))
    >>> round(value.item(), 4), round(mass.item(), 4)
    (0.4159, 0.5)
    """

    index: Tensor
    token_ids: Tensor
    teacher_logp: Tensor
    function: Callable[..., Tensor]
    reads_tail: bool = False
    outside: Tensor | None = None

    def __post_init__(self) -> None:
        check_same_shape(token_ids=self.token_ids, teacher_logp=self.teacher_logp)
        check_same_shape(index=self.index, outside=self.outside)
        check_rows(self.index, 1, token_ids=self.token_ids)

    def __call__(self, student_logps_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        ids, tail = self.token_ids[rows].long(), None
        if self.reads_tail:
            least = torch.finfo(student_logps_CV.dtype).min
            rest = student_logps_CV.scatter(-1, ids, least)
            tail = rest.logsumexp(-1).clamp_min(LEAST_TAIL)
        return self.of_selected(student_logps_CV.gather(-1, ids), rows, tail)

    def of_selected(
        self, student_topk_logp_CK: Tensor, rows: slice, tail_logp_C: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, from the student's log-probabilities [C, K] of `token_ids[rows]`, and of the rest where read."""
        further = (tail_logp_C, None if self.outside is None else self.outside[rows])
        teacher_logp_CK = self.teacher_logp[rows].to(student_topk_logp_CK.dtype)
        value = self.function(student_topk_logp_CK, teacher_logp_CK, *(part for part in further if part is not None))
        masses = student_topk_logp_CK.detach().exp().masked_fill(teacher_logp_CK == -torch.inf, 0.0)
        return value, masses.sum(-1)


@dataclass(frozen=True)
class FullVocabularyTerm:
    """A full-vocabulary divergence; the teacher is kept as hidden states and projected slice by slice.

    Where one vocabulary is padded further than the other, both are restricted to the shared entries and renormalised
    there: a divergence needs one support.

    Attributes:
        index: [M] sorted positions among the N tokens.
        teacher_hidden: [M, H_T].
        teacher_head: the teacher's output layer.
        function: (student_logps [C, V], teacher_logps [C, V]) → [C].
        further: what `function` takes after these two, each [M], of the same tokens.

    Raises:
        ValueError: `teacher_hidden` is not [M, H_T].

    >>> from tropd.objective import reverse_kl
    >>> term = FullVocabularyTerm(torch.tensor([0]), torch.ones(1, 3), Head(torch.zeros(2, 3)), reverse_kl)
    >>> value, _ = term(torch.tensor([[0.9, 0.1]]).log(), slice(0, 1))
    >>> round(value.item(), 4)
    0.3681
    """

    index: Tensor
    teacher_hidden: Tensor
    teacher_head: Head
    function: Callable[..., Tensor]
    further: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        check_rows(self.index, 1, teacher_hidden=self.teacher_hidden)

    def __call__(self, student_logps_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            teacher_logits_CV = self.teacher_head.logits(self.teacher_hidden[rows])
        return self.of_logits(student_logps_CV, teacher_logits_CV, rows)

    def of_logits(self, student_logps_CV: Tensor, teacher_logits_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The same, from the teacher's ready logits [C, V_T] of the same tokens."""
        shared = min(student_logps_CV.shape[-1], self.teacher_head.vocab_size)
        with torch.no_grad():
            teacher_logps = F.log_softmax(teacher_logits_CV[:, :shared], dim=-1).to(student_logps_CV.dtype)
        if shared < student_logps_CV.shape[-1]:
            student_logps_CV = F.log_softmax(student_logps_CV[:, :shared], dim=-1)
        value = self.function(student_logps_CV, teacher_logps, *(column[rows] for column in self.further))
        return value, torch.ones_like(value)


@dataclass(frozen=True)
class SeveralTerms:
    """Full-vocabulary divergences from several teachers, each on its own tokens.

    Attributes:
        terms: one for each teacher; no token is in two of them.

    >>> from tropd.objective import reverse_kl
    >>> def term(*index):
    ...     hidden, head = torch.ones(len(index), 3), Head(torch.zeros(2, 3))
    ...     return FullVocabularyTerm(torch.tensor(index), hidden, head, reverse_kl)
    >>> SeveralTerms((term(0, 3), term(1))).index
    tensor([0, 1, 3])
    """

    terms: tuple[FullVocabularyTerm, ...]

    @property
    def index(self) -> Tensor:
        """[M], sorted: the tokens of all terms."""
        return self._entries[0]

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens, which term each belongs to, and which of that term's entries it is; all [M]."""
        index = torch.cat([term.index for term in self.terms])
        owner = torch.cat([torch.full_like(term.index, number) for number, term in enumerate(self.terms)])
        entry = torch.cat([torch.arange(len(term.index), device=index.device) for term in self.terms])
        order = index.argsort()
        return index[order], owner[order], entry[order]

    def __call__(self, student_logps_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        _, owner, entry = (column[rows] for column in self._entries)
        values = student_logps_CV.new_zeros(len(owner))
        masses = torch.zeros_like(values)
        for number, term in enumerate(self.terms):
            here = (owner == number).nonzero().squeeze(-1)
            if here.numel():
                first, last = entry[here[0]], entry[here[-1]]
                value, mass = term(student_logps_CV[here], slice(int(first), int(last) + 1))
                values, masses = values.index_put((here,), value), masses.index_put((here,), mass)
        return values, masses


def restrict_term(direct: DirectTerm | None, tokens: slice) -> DirectTerm | None:
    """The direct term of a run of tokens, its index counted from the run's start."""
    if direct is None:
        return None
    if isinstance(direct, SeveralTerms):
        return SeveralTerms(tuple(restrict_term(term, tokens) for term in direct.terms))  # type: ignore[misc]
    inside = (direct.index >= tokens.start) & (direct.index < tokens.stop)
    index = direct.index[inside] - tokens.start
    if isinstance(direct, TopKTerm):
        return replace(
            direct,
            index=index,
            token_ids=direct.token_ids[inside],
            teacher_logp=direct.teacher_logp[inside],
            outside=None if direct.outside is None else direct.outside[inside],
        )
    assert isinstance(direct, FullVocabularyTerm)
    further = tuple(column[inside] for column in direct.further)
    return replace(direct, index=index, teacher_hidden=direct.teacher_hidden[inside], further=further)


def reindex_term(direct: DirectTerm | None, place_N: Tensor) -> DirectTerm | None:
    """The direct term where token n has become token `place_N[n]`; the tokens of a term keep their order."""
    if direct is None:
        return None
    if isinstance(direct, SeveralTerms):
        return SeveralTerms(tuple(reindex_term(term, place_N) for term in direct.terms))  # type: ignore[misc]
    return replace(direct, index=place_N[direct.index])  # type: ignore[type-var]


@functools.cache
def reads_tail(method: Method) -> bool:
    """Does `method` compare the mass on all tokens outside of the top-k, too?

    >>> from tropd import get_method
    >>> reads_tail(get_method("tropd")), reads_tail(get_method("tropd", fkl_truncation="tail"))
    (False, True)
    """
    truncated = method.outlier_uses_fkl and method.fkl_truncation == "tail"
    return truncated or method.compares_support or method.baseline == "top_k"


@functools.cache
def topk_function(method: Method) -> Callable[..., Tensor]:
    """What `method` computes on the teacher's top-k tokens; see `TopKTerm`.

    >>> from tropd import get_method
    >>> student, teacher = torch.tensor([[0.3, 0.2]]).log(), torch.tensor([[0.6, 0.2]]).log()
    >>> round(topk_function(get_method("tropd"))(student, teacher).item(), 4)
    0.4159
    """
    if method.compares_support or method.baseline == "top_k":
        floor = _require(method.outlier_tau) if method.outlier in ("clip", "rkl_direct") else -math.inf
        return functools.partial(support_reverse_kl, floor=floor)
    if method.trust == "jsd":
        return lambda student, teacher: topk_jsd_teacher_part(student, teacher, _require(method.jsd_beta))
    truncation = method.fkl_truncation or "none"
    return lambda student, teacher, *tail: topk_forward_kl(student, teacher, truncation, *tail)


def topk_term(
    method: Method, signals: TokenSignals, index_M: Tensor, token_ids_MK: Tensor, teacher_logp_MK: Tensor
) -> TopKTerm:
    """The direct term of a batch under `method`, from the teacher's top-k at the tokens `index_M`; see `TopKTerm`.

    >>> from tropd import get_method
    >>> one, none = torch.ones(1), torch.zeros(1)
    >>> signals = TokenSignals(none, none, trust_weight=none, outlier_weight=one, guidance_mask=none)
    >>> term = topk_term(get_method("resopd"), signals, torch.tensor([0]), torch.tensor([[2]]), torch.tensor([[-0.1]]))
    >>> term.reads_tail, term.outside
    (True, tensor([True]))
    """
    outside = None
    if method.compares_support:
        # What the teacher gives no probability is one of the others.
        token_ids_MK = torch.where(teacher_logp_MK == -torch.inf, token_ids_MK[:, :1], token_ids_MK)
    if method.gate == "support" and method.outlier != "mask":
        outside = signals.outlier_weight[index_M] > 0
    return TopKTerm(index_M, token_ids_MK, teacher_logp_MK, topk_function(method), reads_tail(method), outside)


def full_function(method: Method) -> Callable[..., Tensor]:
    """What `method` computes on whole distributions; see `FullVocabularyTerm`.

    >>> from tropd import get_method
    >>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> round(full_function(get_method("gkd"))(student, teacher).item(), 4)  # reverse KL
    0.3681
    """
    if method.support == "union":
        return functools.partial(_on_union, method)
    # A partial, in which the fused loss recognises what it has a closed form for.
    return functools.partial(generalized_jsd, beta=1.0 if method.baseline == "full" else _require(method.jsd_beta))


def full_term(
    method: Method,
    signals: TokenSignals,
    index_M: Tensor,
    teacher_hidden_MH: Tensor,
    teacher_head: Head,
    token_ids_N: Tensor,
) -> FullVocabularyTerm:
    """The direct term of a batch under `method`, from the teacher's states at the tokens `index_M`.

    >>> from tropd import get_method
    >>> one, none, head = torch.ones(1), torch.zeros(1), Head(torch.zeros(2, 3))
    >>> signals = TokenSignals(none, none, trust_weight=one, outlier_weight=none, guidance_mask=none)
    >>> for method in (get_method("gkd"), get_method("tropd_support", support="union")):
    ...     term = full_term(method, signals, torch.tensor([0]), torch.ones(1, 3), head, torch.tensor([1]))
    ...     print(len(term.further), round(term(torch.tensor([[0.9, 0.1]]).log(), slice(0, 1))[0].item(), 4))
    0 0.3681
    3 0.3681

    Args:
        method: the stage in force.
        signals: see `TokenSignals`.
        index_M: sorted positions among the N tokens.
        teacher_hidden_MH: the teacher's states there.
        teacher_head: its output layer.
        token_ids_N: the sampled tokens, any ending as the first of its set.
    """
    further: tuple[Tensor, ...] = ()
    if method.support == "union":
        further = tuple(column[index_M] for column in (token_ids_N, signals.rollout_logp, signals.log_ratio))
    return FullVocabularyTerm(index_M, teacher_hidden_MH, teacher_head, full_function(method), further)


def _on_union(
    method: Method,
    student_logps_CV: Tensor,
    teacher_logps_CV: Tensor,
    token_ids_C: Tensor,
    rollout_logp_C: Tensor,
    log_ratio_C: Tensor,
) -> Tensor:
    """[C], ResOPD on the union of both models' top-k, the K1 of a sampled token outside of it included."""
    ids, teacher_logp = union_of_supports(student_logps_CV, teacher_logps_CV, int(_require(method.fkl_top_k)))
    outside = None if method.outlier == "mask" else ~in_support(token_ids_C, ids, teacher_logp)
    rows = torch.arange(len(ids), device=ids.device)
    term = TopKTerm(rows, ids, teacher_logp, topk_function(method), reads_tail=True, outside=outside)
    value, _ = term(student_logps_CV, slice(None))
    if outside is None:
        return value
    clipped = log_ratio_C.clamp_min(_require(method.outlier_tau)) if method.outlier == "clip" else log_ratio_C
    sampled = gather_logps(student_logps_CV, token_ids_C)
    return value + policy_gradient_loss(sampled, rollout_logp_C, torch.where(outside, clipped, 0.0), method.ratio_clip)


def student_terms(
    hidden_NH: Tensor,
    head: Head,
    token_ids_N: Tensor,
    direct: DirectTerm | None = None,
    *,
    slice_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The student's differentiable terms in one pass over its head.

    >>> logp, _, _ = student_terms(torch.ones(2, 3), Head(torch.zeros(4, 3)), torch.tensor([0, 3]))
    >>> [round(value, 4) for value in logp.tolist()]
    [-1.3863, -1.3863]

    Args:
        hidden_NH: [N, H], states that predict the tokens.
        head: the student's output layer, at the sampling temperature.
        token_ids_N: the sampled tokens.
        direct: the divergence to differentiate directly, or `None`.
        slice_tokens: tokens per slice, see `over_vocabulary`.

    Returns:
        log π_S of each token [N]; the direct term [N]; and, detached, the student's mass on the tokens that the
        direct term compares [N]. The last two are zero where `direct.index` does not point.

    Raises:
        ValueError: `hidden_NH` does not fit the head, or has not one row for each token.
    """
    check_rows(token_ids_N, 1, hidden_NH=hidden_NH)
    bounds, token_ids_N = None if direct is None else direct.index.cpu(), events_of(token_ids_N, head.endings)

    def terms(logits_CV: Tensor, tokens: slice) -> tuple[Tensor, Tensor, Tensor]:
        logps_CV = F.log_softmax(logits_CV, dim=-1)
        sampled = gather_logps(logps_CV, token_ids_N[tokens])
        nothing = torch.zeros_like(sampled)
        if direct is None or bounds is None:
            return sampled, nothing, nothing
        start, stop = torch.searchsorted(bounds, torch.tensor([tokens.start, tokens.stop])).tolist()
        if start == stop:
            return sampled, nothing, nothing
        inside = (direct.index[start:stop] - tokens.start,)
        values, masses = direct(logps_CV[inside], slice(start, stop))
        return sampled, nothing.index_put(inside, values), nothing.index_put(inside, masses)

    logp, values, masses = over_vocabulary(terms, hidden_NH, head, slice_tokens=slice_tokens)
    return logp, values, masses.detach()


def active_tokens(method: Method, signals: TokenSignals) -> Tensor:
    """bool [N]: the tokens whose loss under `method` can be other than zero, in value or gradient.

    >>> from tropd import get_method
    >>> logp, trust = torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])
    >>> signals = TokenSignals(logp, logp, trust, outlier_weight=trust.roll(1), guidance_mask=trust.roll(2))
    >>> [active_tokens(get_method(name), signals).tolist() for name in ("tropd", "mask_outlier")]
    [[True, True, True], [True, False, False]]
    """
    learned = signals.trust_weight != 0
    if method.outlier != "mask":
        learned = learned | (signals.outlier_weight != 0)
    if method.guidance_beta:
        learned = learned | (signals.guidance_mask != 0)
    if signals.reward_advantage is not None:
        student = signals.trust_weight + signals.outlier_weight != 0
        learned = learned | (student & (signals.reward_advantage != 0))
    return learned


def token_losses(method: Method, signals: TokenSignals, student_logp_N: Tensor, direct_N: Tensor) -> TokenLosses:
    """Every token's loss under `method`, per region: −J of TrOPD (arXiv 2606.01249, objective), token by token.

    A token of weight zero contributes exactly zero and no gradient, whatever its log ratio.

    >>> from tropd import get_method
    >>> rollout, teacher, trust = torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -9.0]), torch.tensor([1.0, 0.0])
    >>> signals = TokenSignals(rollout, teacher, trust, outlier_weight=1 - trust, guidance_mask=torch.zeros(2))
    >>> losses = token_losses(get_method("tropd"), signals, rollout, direct_N=torch.tensor([0.0, 0.4]))
    >>> losses.trust.tolist(), [round(value, 4) for value in losses.outlier.tolist()]
    ([0.5, 0.0], [0.0, 0.4])

    Args:
        method: the stage in force.
        signals: detached, see `TokenSignals`.
        student_logp_N: log π_S of the sampled tokens, differentiable.
        direct_N: the direct term from `student_terms`, zero where the method has none.

    Raises:
        ValueError: signals, log-probabilities and direct term differ in shape.
    """
    check_same_shape(student_logp_N=student_logp_N, direct_N=direct_N, signals=signals.rollout_logp)

    def policy_gradient(advantage: Tensor, weight: Tensor) -> Tensor:
        # An infinite advantage of a token left out would still reach the gradient as 0·∞.
        advantage = torch.where(weight == 0, 0.0, advantage)
        loss = policy_gradient_loss(student_logp_N, signals.rollout_logp, advantage, method.ratio_clip)
        return _weigh(weight, loss)

    trust = _trust_losses(method, signals, direct_N, policy_gradient)
    outlier = _outlier_losses(method, signals, direct_N, policy_gradient)
    guided = student_logp_N
    if method.guidance_term == "k1":
        # A detached advantage, at ratio 1: its sign pushes teacher tokens down (docs/footguns.md).
        detached = student_logp_N.detach()
        guided = (detached - signals.teacher_logp.detach()) * torch.exp(student_logp_N - detached)
    guidance = _weigh(signals.guidance_mask, -(method.guidance_beta or 0.0) * guided)
    if signals.turn_weight is not None:
        trust, outlier, guidance = (_weigh(signals.turn_weight, part) for part in (trust, outlier, guidance))
    reward = torch.zeros_like(student_logp_N)
    if signals.reward_advantage is not None:
        reward = policy_gradient(signals.reward_advantage, signals.trust_weight + signals.outlier_weight)
    return TokenLosses(trust=trust, outlier=outlier, guidance=guidance, reward=reward)


def _trust_losses(method: Method, signals: TokenSignals, direct_N: Tensor, policy_gradient: PolicyGradient) -> Tensor:
    """[N], what is learned from trusted tokens: a policy gradient, a divergence, or half of each."""
    rollout, teacher, weight = signals.rollout_logp, signals.teacher_logp, signals.trust_weight
    if method.trust in ("gkd", "rkl_direct"):
        return _weigh(weight, direct_N)
    if method.trust == "jsd":
        advantage = jsd_sampled_advantage(rollout, teacher, _require(method.jsd_beta))
        return policy_gradient(advantage, weight) + _weigh(weight, direct_N)
    advantage = signals.log_ratio
    if method.advantage != "log_ratio":
        advantage = sampled_advantage(method.advantage, rollout, teacher, method.advantage_alpha)
    if method.advantage_floor is not None:
        advantage = advantage.clamp_min(method.advantage_floor)
    if method.baseline != "none":
        advantage = advantage + direct_N.detach()  # the mean of −r over the state, or the part that is known
    if signals.advantage_scale is not None:
        advantage = advantage * signals.advantage_scale
    return policy_gradient(advantage, weight)


def _outlier_losses(method: Method, signals: TokenSignals, direct_N: Tensor, policy_gradient: PolicyGradient) -> Tensor:
    """[N], what is learned from outliers."""
    log_ratio, weight = signals.log_ratio, signals.outlier_weight
    losses = torch.zeros_like(weight)
    if method.outlier == "clip":
        losses = policy_gradient(log_ratio.clamp_min(_require(method.outlier_tau)), weight)
    elif method.outlier == "fkl_direct":
        losses = method.fkl_weight * _weigh(weight, direct_N)
    elif method.outlier == "fkl_scalar":
        # The printed value as a detached advantage: another algorithm, kept as a switch (docs/footguns.md).
        losses = policy_gradient(-method.fkl_weight * direct_N.detach(), weight)
    elif method.outlier == "k1_and_fkl":
        losses = policy_gradient(log_ratio, weight) + method.fkl_weight * _weigh(weight, direct_N)
    elif method.outlier == "k1":
        losses = policy_gradient(log_ratio, weight)
    elif method.outlier == "rkl_direct":
        losses = _weigh(weight, direct_N)
    return losses + _weigh(weight, direct_N) if method.trust == "rkl_direct" else losses


def _weigh(weight: Tensor, value: Tensor) -> Tensor:
    """weight·value with 0·(anything) = 0 in both passes."""
    return torch.where(weight == 0, 0.0, weight * torch.where(weight == 0, 0.0, value))


def _require(value: float | None) -> float:
    assert value is not None, "get_method fills every setting that a method reads"
    return value
