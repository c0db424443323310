"""Scoring a batch when it is built: the student's pass, the teacher's pass, regions, counts.

Everything is known for the whole optimiser step before its first update, so entropy quantiles, counts and draws are
global and the loss only reads. N counts scored response tokens, row after row.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..modeling import rotates_by_length
from ..objective.endings import Endings
from ..objective.head.layer import sampled_logps
from ..objective.loss import (
    DirectTerm,
    FullVocabularyTerm,
    SeveralTerms,
    TokenSignals,
    TopKTerm,
    full_function,
    reads_tail,
    restrict_term,
    topk_function,
)
from ..objective.methods import Method
from ..objective.randomness import addressed_uniforms
from ..objective.regions import top_share_threshold, trust_weight
from ..teacher.local import TeacherScores, TopKRequest, WantsTopK
from ..teacher.several import Teachers
from .batch import Rollout, pack_for_student

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentScores:
    """The student before the update; all [N].

    Attributes:
        rollout_logp: log π_old: the sampler's where there was no pass or the sampler was another engine, else the
            trainer's.
        trainer_logp: the trainer's own; NaN where no pass was made.
        from_sampler: where `rollout_logp` is the sampler's.
        entropy: nats.
    """

    rollout_logp: Tensor
    trainer_logp: Tensor
    from_sampler: Tensor
    entropy: Tensor

    def __getitem__(self, tokens: slice | Tensor) -> "StudentScores":
        return StudentScores(
            self.rollout_logp[tokens],
            self.trainer_logp[tokens],
            self.from_sampler[tokens],
            self.entropy[tokens],
        )


def notes_suffice(trainer: Any) -> bool:
    """May what the sampler notes of its tokens stand in for a pass of the student over its rollouts?

    A model that computes in half precision, or from quantised weights, rounds its logits, and the numbers noted with
    them: in bf16 a logit of 20 by up to 0.06. The pass computes logits from the states in float32. Where the rotary
    embedding depends on the batch, both are right, of different models.
    """
    args = trainer.args
    if args.rescore_rollouts is not None or not args.addresses_sampling():
        return args.rescore_rollouts is False
    exact = all(parameter.dtype in (torch.float32, torch.float64) for parameter in trainer.model.parameters())
    return bool(exact and trainer.accelerator.mixed_precision == "no" and not rotates_by_length(trainer.model))


@cache
def warn_of_a_pass() -> None:
    """Say, once, that a pass is made though `rescore_rollouts` is `False`."""
    logger.warning(
        "rescore_rollouts is False, but the sampler noted nothing of some rollouts (docs/rollouts.md says where "
        "Transformers' own loop writes them), so a pass of the student reads these batches after all."
    )


def scores_of_sampler(rollouts: Sequence[Rollout], device: Any) -> StudentScores | None:
    """The scores as the sampler noted them; `None` where it lacks one for a token that the student wrote."""
    logp = _column(rollouts, [rollout.sampler_logps for rollout in rollouts], device)
    entropy = _column(rollouts, [rollout.sampler_entropies for rollout in rollouts], device)
    known = logp.isfinite() & entropy.isfinite()
    if not known[_student_mask(rollouts, device)].all():
        return None
    return StudentScores(logp, torch.full_like(logp, torch.nan), known, entropy)


@torch.no_grad()
def score_student(
    model: Callable,
    rollouts: Sequence[Rollout],
    *,
    pad_id: int,
    temperature: float,
    rows_per_pass: int,
    device,
    endings: Endings = (),
    by_length: bool = False,
) -> StudentScores:
    """The student's log-probabilities and entropies of its own rollouts, without gradient; `endings` as one action."""
    logps, entropies, numbers = [], [], []
    for start in range(0, len(rollouts), rows_per_pass):
        rows = list(rollouts[start : start + rows_per_pass])
        packed = pack_for_student(rows, pad_id, device, by_length=by_length)
        logp, entropy = model(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            on_hidden=lambda hidden, head, packed=packed: sampled_logps(
                packed.states(hidden), head.at_temperature(temperature, endings), packed.token_ids
            ),
        )
        logps.append(logp.float())
        entropies.append(entropy.float())
        numbers.append(_column(rows, [_of_another_engine(rollout, endings) for rollout in rows], logp.device))
    trainer, sampler = torch.cat(logps), torch.cat(numbers)
    known = sampler.isfinite()
    return StudentScores(torch.where(known, sampler, trainer), trainer, known, torch.cat(entropies))


def _of_another_engine(rollout: Rollout, endings: Endings) -> list[float] | None:
    """What vLLM says of its tokens. Our own sampler is the model of this pass, which says it more exactly.

    Of an ending it tells the id's own probability and not that of the action, so there the pass is believed.
    """
    if rollout.sampler_entropies is not None or rollout.sampler_logps is None or len(endings) < 2:
        return rollout.sampler_logps if rollout.sampler_entropies is None else None
    pairs = zip(rollout.response, rollout.sampler_logps, strict=True)
    return [math.nan if token in endings else logp for token, logp in pairs]


def _column(rollouts: Sequence[Rollout], lines: Sequence[list[float] | None], device: Any) -> Tensor:
    """The numbers of the N tokens; NaN in rows without any."""
    values = [
        math.nan if line is None else line[position]
        for rollout, line in zip(rollouts, lines, strict=True)
        for position in rollout.scored_positions()
    ]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _student_mask(rollouts: Sequence[Rollout], device: Any) -> Tensor:
    """bool [N]: the tokens that the student wrote."""
    marks = [position >= rollout.prefix_length for rollout in rollouts for position in rollout.scored_positions()]
    return torch.tensor(marks, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class Gate:
    """The trust gate of one batch: the method's, with the numbers it needs.

    Attributes:
        method: the stage in force.
        student_mask: [N] student-written tokens.
        uniforms: [N] addressed draws, or `None` where the method draws nothing.
        entropy_threshold: global threshold of the student's entropy, or `None`.
    """

    method: Method
    student_mask: Tensor
    uniforms: Tensor | None = None
    entropy_threshold: float | None = None

    def weights(
        self,
        student: StudentScores,
        teacher_logp: Tensor,
        teacher_entropy: Tensor,
        tokens: slice | Tensor = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Trust and outlier weights of the tokens in `tokens`; both zero on tokens without a finite teacher score."""
        here = student[tokens]
        log_ratio = (teacher_logp - here.rollout_logp).float()
        trust = trust_weight(
            self.method.gate,
            log_ratio,
            uniforms=None if self.uniforms is None else self.uniforms[tokens],
            tau=self.method.outlier_tau,
            selected=self._selected(here.entropy, teacher_entropy),
        )
        learned = (self.student_mask[tokens] & log_ratio.isfinite()).to(trust.dtype)
        return torch.where(learned > 0, trust, 0.0), torch.where(learned > 0, 1.0 - trust, 0.0)

    def _selected(self, student_entropy: Tensor, teacher_entropy: Tensor) -> Tensor | None:
        if self.entropy_threshold is not None:
            return student_entropy >= self.entropy_threshold
        if self.method.teacher_entropy_tau is not None:
            return teacher_entropy <= self.method.teacher_entropy_tau
        return None


def make_gate(
    method: Method,
    rollouts: Sequence[Rollout],
    student: StudentScores,
    *,
    seed: int,
    step: int,
    stream: int,
    gather: Callable[[Tensor], Tensor],
) -> Gate:
    """The gate for a batch; `gather` collects a ragged [n] tensor from all ranks, for the global entropy quantile."""
    device = student.entropy.device
    student_mask = _student_mask(rollouts, device)
    uniforms = _uniforms(rollouts, seed, step, stream).to(device) if method.gate == "bernoulli" else None
    threshold = None
    if method.gate == "student_entropy":
        assert method.entropy_share is not None
        threshold = top_share_threshold(gather(student.entropy[student_mask]), method.entropy_share)
    return Gate(method, student_mask, uniforms, threshold)


def _uniforms(rollouts: Sequence[Rollout], seed: int, step: int, stream: int) -> Tensor:
    draws = [
        addressed_uniforms(seed, step, [rollout.row], len(rollout.response), stream)[0, rollout.scored_positions()]
        for rollout in rollouts
    ]
    return torch.cat(draws)


def score_teacher(
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    gate: Gate,
    student: StudentScores,
    *,
    pad_id: int,
    temperature: float,
    rows_per_pass: int,
    student_vocab_size: int,
    endings: Endings = (),
) -> TeacherScores:
    """One pass of each row's teacher: the sampled log-prob everywhere, the top-k only where the method reads it."""
    request = None
    if gate.method.needs_topk:
        assert gate.method.fkl_top_k is not None
        k = min(gate.method.fkl_top_k, teachers.shared_vocabulary(student_vocab_size) - max(len(endings) - 1, 0))
        request = TopKRequest(k, student_vocab_size, _wants_topk(gate, student))
    return teachers.score(
        [rollout.teacher for rollout in rollouts],
        [rollout.teacher_context for rollout in rollouts],
        [rollout.response for rollout in rollouts],
        [rollout.scored for rollout in rollouts],
        pad_id=pad_id,
        temperature=temperature,
        rows_per_pass=rows_per_pass,
        topk=request,
        endings=endings,
        keep_hidden=gate.method.needs_full_teacher,
    )


def without_unusable(scores: TeacherScores, method: Method) -> TeacherScores:
    """Scores in which a token without a usable entropy, where `method` reads it, or top-k has no score at all.

    Such a token leaves the loss and is counted like one whose log-probability is not finite; its top-k goes with it,
    so that no mean is over it. −inf in a top-k is a probability of zero.
    """
    topk = scores.topk_logp
    usable = (topk < torch.inf).all(-1) & ((topk > -torch.inf).any(-1) | (topk.shape[-1] == 0))
    lacking = torch.zeros_like(scores.logp, dtype=torch.bool)
    if method.teacher_entropy_tau is not None:
        lacking |= ~scores.entropy.isfinite()
    lacking[scores.topk_index[~usable]] = True
    read = ~lacking[scores.topk_index]
    return replace(
        scores,
        logp=scores.logp.masked_fill(lacking, torch.nan),
        topk_index=scores.topk_index[read],
        topk_ids=scores.topk_ids[read],
        topk_logp=topk[read],
    )


def tokens_of_teachers(rollouts: Sequence[Rollout], names: Sequence[str], device: Any) -> dict[str, Tensor]:
    """For each name of a teacher, bool [N]: the tokens of its rows."""
    lengths = torch.tensor([sum(rollout.scored) for rollout in rollouts])
    rows = {name: torch.tensor([rollout.teacher == name for rollout in rollouts]) for name in names}
    return {name: mine.repeat_interleave(lengths).to(device) for name, mine in rows.items()}


def _wants_topk(gate: Gate, student: StudentScores) -> WantsTopK:
    def wanted(logp: Tensor, entropy: Tensor, tokens: slice | Tensor) -> Tensor:
        trust, outlier = gate.weights(student, logp, entropy, tokens)
        return (trust + outlier if gate.method.trust == "jsd" else outlier) > 0

    return wanted


def make_signals(
    rollouts: Sequence[Rollout],
    gate: Gate,
    student: StudentScores,
    teacher: TeacherScores,
    reward_weight: float,
) -> TokenSignals:
    """Everything the loss reads of each token; entries of tokens left out are zero."""
    trust, outlier = gate.weights(student, teacher.logp, teacher.entropy)
    known = teacher.logp.isfinite()
    rewards = None
    if reward_weight > 0:
        per_token = [rollout.reward_advantage for rollout in rollouts for _ in rollout.scored_positions()]
        rewards = reward_weight * torch.tensor(per_token, dtype=torch.float32, device=trust.device)
    return TokenSignals(
        # Of a prefix nothing reads it, and a sampler does not know it; what is 0·NaN in the loss would not be 0.
        rollout_logp=torch.where(gate.student_mask, student.rollout_logp, student.rollout_logp.nan_to_num(0.0)),
        teacher_logp=torch.where(known, teacher.logp, 0.0),
        trust_weight=trust,
        outlier_weight=outlier,
        guidance_mask=(~gate.student_mask).to(trust.dtype),
        reward_advantage=rewards,
    )


def make_direct(method: Method, signals: TokenSignals, teacher: TeacherScores) -> DirectTerm | None:
    """The directly differentiated term of the batch, where the method has one."""
    if method.needs_full_teacher:
        learned, function = signals.trust_weight + signals.outlier_weight > 0, full_function(method)
        terms = []
        for states in teacher.states:
            read = learned[states.index]
            terms.append(FullVocabularyTerm(states.index[read], states.hidden[read], states.head, function))
        return terms[0] if len(terms) == 1 else SeveralTerms(tuple(terms))
    if method.needs_topk:
        return TopKTerm(
            teacher.topk_index, teacher.topk_ids, teacher.topk_logp, topk_function(method), reads_tail(method)
        )
    return None


def split_micro_batches(
    rollouts: Sequence[Rollout], signals: TokenSignals, direct: DirectTerm | None, sizes: Sequence[int]
) -> list[tuple[list[Rollout], TokenSignals, DirectTerm | None]]:
    """Cut a batch into consecutive groups of `sizes` rows, with each group's tokens."""
    if sum(sizes) != len(rollouts):
        raise ValueError(f"{len(rollouts)} rollouts cannot be cut into groups of {list(sizes)}")
    parts, row, token = [], 0, 0
    for size in sizes:
        rows = list(rollouts[row : row + size])
        tokens = slice(token, token + sum(sum(rollout.scored) for rollout in rows))
        parts.append((rows, signals[tokens], restrict_term(direct, tokens)))
        row, token = row + size, tokens.stop
    return parts
