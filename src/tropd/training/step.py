"""One step on one page: prompts → prefixes → rollouts → scores → regions → signals → micro-batches → loss.

`build_step` makes all of it but the last, and the functions it calls follow in the same order; `micro_batches` cuts the
result and sums token counts over ranks. Everything but the student's gradient is known then: `learn` only reads.

N counts the response tokens that are learned from or measured, row after row.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import compress, repeat
from typing import Any

import torch
from torch import Tensor

from ..objective.endings import Endings, events_of
from ..objective.head.fused_loss import FusedLoss, fused_loss
from ..objective.head.layer import sampled_logps
from ..objective.loss import (
    DirectTerm,
    SeveralTerms,
    TokenSignals,
    full_term,
    restrict_term,
    topk_term,
)
from ..objective.methods import Method
from ..objective.randomness import addressed_uniforms
from ..objective.reduce import RegionCounts, region_counts
from ..objective.regions import in_support, top_share_threshold, trust_probability, trust_weight
from ..objective.schedules import guidance_fraction
from ..objective.turns import turn_mean_weights, turn_trust_weights
from ..teacher.context import Row
from ..teacher.endings import PairEndings
from ..teacher.local import NotedTopK, TeacherScores, TopKRequest
from ..teacher.teachers import Teachers
from .distributed.ranks import Ranks
from .guards.faults import SCORING, teacher_guard
from .guards.step_guards import StepGuards, scores_not_finite
from .records import MicroBatch, Prefix, Rollout, pack_for_student
from .rollout_stage import RolloutStage

logger = logging.getLogger(__name__)

GATE_STREAM, EVALUATION_GATE_STREAM = 0, 1
"""Addressed draws of the trust gate, in training and in evaluation."""

ROUNDING = 1e-4
"""Nats within which a gate decided by its bound may differ from one decided by the ratio."""

SMALLEST_DRAW = 1e-30
"""A draw of 0 falls outside where exp(r) is 0, at r of about −104; this one's logarithm is −69."""


@dataclass(frozen=True)
class StepSetup:
    """What a step is built with. Made anew for each step, from the trainer.

    Attributes:
        student: the student's forward pass; see `models.hidden_states.expose_hidden_states`.
        teachers: who scores which row.
        method: the stage in force.
        endings: how responses end.
        step: optimiser steps taken before this one.
        max_steps: of the run.
        is_training: else it is a batch of an evaluation: no prefixes, and gates of a stream of their own.
        seed: of the run.
        temperature: at which rollouts are drawn; both models are scored at it.
        pad_id: any valid token id.
        student_vocab_size: rows of the student's head.
        shared_vocab_size: of its token ids, those that every teacher can score.
        device: the student's.
        rows_per_pass: rollouts that pass through the student at once.
        teacher_rows_per_pass: likewise through a teacher.
        by_length: may a pass be cut into several, of rows of about one length?
        reward_weight: of the rewards mixed into the policy gradient.
        advantage_scale: of the K1 advantage of trusted tokens; `None`: the method has none, or it is an evaluation.
        trusts_sampler: may the sampler's records replace a pass of the student?
        rescores: `rescore_rollouts` of the configuration.
        noted_rows: rollouts of this rank, from the first, that are logged with the teacher's likeliest tokens.
        noted_topk: how many of these a token is logged with, where the method asks for no top-k itself.
        ranks: sums over the processes.
        guards: what turns a failure into a sentence.
    """

    student: Callable[..., Any]
    teachers: Teachers
    method: Method
    endings: PairEndings
    step: int
    max_steps: int
    is_training: bool
    seed: int
    temperature: float
    pad_id: int
    student_vocab_size: int
    shared_vocab_size: int
    device: torch.device
    rows_per_pass: int
    teacher_rows_per_pass: int
    by_length: bool
    reward_weight: float
    advantage_scale: float | None
    trusts_sampler: bool
    rescores: bool | None
    noted_rows: int
    noted_topk: int
    ranks: Ranks
    guards: StepGuards


@dataclass(frozen=True)
class Step:
    """All that is known before the first update; tensors over the N tokens.

    Attributes:
        guidance_fraction: α of the schedule; `None` where the student is not guided.
        rollouts: of this rank.
        student: its scores before the update.
        teacher: the teachers' scores.
        of_teachers: for each name of several teachers, bool [N]: the tokens of its rows.
        signals: regions and log-probabilities as the loss reads them.
        direct: the divergence to differentiate directly, where the method has one.
        seconds: taken by the rollout and by the teachers.
    """

    guidance_fraction: float | None
    rollouts: list[Rollout]
    student: "StudentScores"
    teacher: TeacherScores
    of_teachers: dict[str, Tensor]
    signals: TokenSignals
    direct: DirectTerm | None
    seconds: tuple[float, float]


def build_step(setup: StepSetup, rollout_stage: RolloutStage, rows: Sequence[Row]) -> Step:
    """From this rank's prompts to everything that the loss reads."""
    clock = [time.perf_counter()]
    fraction, rollouts = make_rollouts(setup, rollout_stage, rows)
    clock.append(time.perf_counter())

    student = score_rollouts(setup, rollouts)
    gate = make_gate(setup, rollouts, student)
    clock.append(time.perf_counter())
    teacher = score_teachers(setup, rollouts, gate)
    clock.append(time.perf_counter())

    of_teachers = {}
    for name in setup.teachers.names:
        mine = [[rollout.teacher == name] * len(rollout.response) for rollout in rollouts]
        of_teachers[name] = column_of(rollouts, mine, teacher.logp.device, torch.bool)
    check_teachers(setup, teacher, gate, of_teachers)
    signals = make_signals(setup, rollouts, student, gate, teacher)
    direct = make_direct(setup, rollouts, signals, teacher)
    seconds = (clock[1] - clock[0], clock[3] - clock[2])
    return Step(fraction, rollouts, student, teacher, of_teachers, signals, direct, seconds)


# ---------------------------------------------------------------------- prompts → prefixes → rollouts


def make_rollouts(
    setup: StepSetup, rollout_stage: RolloutStage, rows: Sequence[Row]
) -> tuple[float | None, list[Rollout]]:
    """The schedule's α (`None` without guidance), and what the student wrote after prefixes of that length."""
    rows, first_row = rollout_stage.begin(rows)
    fraction = None
    if setup.method.guided and setup.is_training:
        fraction = guidance_fraction(setup.method.guidance_schedule, setup.step, setup.max_steps)
    prefixes = [Prefix([]) for _ in rows]
    guidance = None
    if fraction and rollout_stage.has_turns:
        guidance = rollout_stage.guide_turns(rows, first_row, fraction, setup.method)
    elif fraction:
        prefixes = rollout_stage.find_prefixes(rows, first_row, fraction, setup.method)
    return fraction, rollout_stage.roll_out(rows, first_row, prefixes, guidance)


# ---------------------------------------------------------------------- the student's scores


@dataclass(frozen=True)
class StudentScores:
    """The student before the update; all [N].

    Attributes:
        rollout_logp: log π_old: the sampler's where there was no pass or the sampler was another engine, else the
            trainer's.
        trainer_logp: the trainer's own; NaN where no pass was made.
        sampler_logp: the sampler's own, used or not; NaN where it recorded none.
        entropy: nats.
        from_notes: no pass was made; the sampler's numbers are used instead.
    """

    rollout_logp: Tensor
    trainer_logp: Tensor
    sampler_logp: Tensor
    entropy: Tensor
    from_notes: bool = False


def score_rollouts(setup: StepSetup, rollouts: Sequence[Rollout]) -> StudentScores:
    """The student's scores: the sampler's, if it recorded every token on every rank; else those of a forward pass."""
    if setup.trusts_sampler:
        noted = scores_of_sampler(rollouts, setup.device)
        lacking = setup.ranks.sum(torch.tensor([float(noted is None)])).item()
        if noted is not None and not lacking:
            return noted
        if setup.rescores is False:
            warn_of_a_pass()
    with setup.guards.memory(SCORING), setup.guards.autocast():
        return score_student(setup, rollouts)


@cache
def warn_of_a_pass() -> None:
    """Warn once that a pass is made although `rescore_rollouts` is `False`."""
    logger.warning(
        "rescore_rollouts is False, but the sampler recorded nothing for some rollouts (docs/rollouts.md says where "
        "Transformers' own loop writes them), so the student scores these batches in a pass of its own."
    )


def scores_of_sampler(rollouts: Sequence[Rollout], device: Any) -> StudentScores | None:
    """The scores that the sampler recorded; `None` if it lacks one for a token that the student wrote."""
    logp = column_of(rollouts, [rollout.sampler_logps for rollout in rollouts], device)
    entropy = column_of(rollouts, [rollout.sampler_entropies for rollout in rollouts], device)
    known = logp.isfinite() & entropy.isfinite()
    by_teacher = column_of(rollouts, [rollout.by_teacher for rollout in rollouts], device, torch.bool)
    if not (known | by_teacher).all():
        return None
    return StudentScores(logp, torch.full_like(logp, torch.nan), logp, entropy, from_notes=True)


@torch.no_grad()
def score_student(setup: StepSetup, rollouts: Sequence[Rollout]) -> StudentScores:
    """The student's log-probabilities and entropies of its own rollouts, without gradient."""
    logps, entropies = [], []
    for start in range(0, len(rollouts), setup.rows_per_pass):
        rows = rollouts[start : start + setup.rows_per_pass]
        packed = pack_for_student(rows, setup.pad_id, setup.device, by_length=setup.by_length)
        logp, entropy = setup.student(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            on_hidden=lambda hidden, head, packed=packed: sampled_logps(
                packed.states(hidden), head.at_temperature(setup.temperature, setup.endings.as_one), packed.token_ids
            ),
        )
        logps.append(logp.float())
        entropies.append(entropy.float())
    trainer = torch.cat(logps)
    noted = column_of(rollouts, [rollout.sampler_logps for rollout in rollouts], trainer.device)
    # Our own sampler, which records entropies, is the model of this pass, whose numbers are more exact.
    theirs = [None if rollout.sampler_entropies is not None else rollout.sampler_logps for rollout in rollouts]
    sampler = column_of(rollouts, theirs, trainer.device)
    return StudentScores(torch.where(sampler.isfinite(), sampler, trainer), trainer, noted, torch.cat(entropies))


def column_of(
    rollouts: Sequence[Rollout], lines: Sequence[Sequence[float] | None], device: Any, dtype: Any = torch.float32
) -> Tensor:
    """[N], for each rollout a line of numbers, of which those of its scored tokens are taken; NaN where it has none."""
    values: list[float] = []
    for rollout, line in zip(rollouts, lines, strict=True):
        values += compress(repeat(math.nan) if line is None else line, rollout.scored)
    return torch.tensor(values, dtype=dtype, device=device)


# ---------------------------------------------------------------------- regions


@dataclass
class Gate:
    """The trust gate: divides the student's tokens into trust region and outliers, when the teacher has scored them.

    Attributes:
        method: the stage in force.
        student: the student's scores.
        student_mask: bool [N]: student-written tokens.
        uniforms: [N] addressed draws, or `None` where the method draws nothing.
        entropy_threshold: [N] what the student's entropy must reach, or `None` where the method selects otherwise.
        trust: [N] weight in the trust region; 0 until the token is scored, and on tokens without a finite score.
        outlier: [N] weight outside of it; likewise.
    """

    method: Method
    student: StudentScores
    student_mask: Tensor
    uniforms: Tensor | None
    entropy_threshold: Tensor | None
    trust: Tensor
    outlier: Tensor

    def divide(self, teacher_logp: Tensor, teacher_entropy: Tensor, tokens: slice | Tensor) -> None:
        """Set the weights of the tokens in `tokens`, with the teacher's scores of them."""
        log_ratio = (teacher_logp - self.student.rollout_logp[tokens]).float()
        selected = None
        if self.entropy_threshold is not None:
            selected = self.student.entropy[tokens] >= self.entropy_threshold[tokens]
        elif self.method.teacher_entropy_tau is not None:
            selected = teacher_entropy <= self.method.teacher_entropy_tau
        elif self.method.gate == "support":
            selected = torch.ones_like(log_ratio, dtype=torch.bool)  # the others are distrusted when the top-k is known
        trust = trust_weight(
            self.method.gate,
            log_ratio,
            uniforms=None if self.uniforms is None else self.uniforms[tokens],
            tau=self.method.outlier_tau,
            selected=selected,
        )
        learned = self.student_mask[tokens] & log_ratio.isfinite()
        self.trust[tokens] = torch.where(learned, trust, 0.0)
        self.outlier[tokens] = torch.where(learned, 1.0 - trust, 0.0)

    def most_of_an_outlier(self) -> Tensor:
        """[N] float32, log π_T above which no token needs the teacher's top-k, and a little more, for rounding.

        −∞ where none is needed whatever the teacher says, +∞ where this gate does not tell by it.
        """
        method, logp = self.method, self.student.rollout_logp.float()
        if method.trust != "k1" or method.baseline != "none":
            bound = torch.full_like(logp, torch.inf)
        elif self.uniforms is not None:
            bound = logp + self.uniforms.clamp_min(SMALLEST_DRAW).log().float()
        elif method.gate in ("hard", "floor"):
            assert method.outlier_tau is not None
            bound = logp + method.outlier_tau
        elif method.gate == "expected":
            bound = logp
        elif self.entropy_threshold is not None:
            bound = torch.where(self.student.entropy >= self.entropy_threshold, -torch.inf, torch.inf)
        else:
            bound = torch.full_like(logp, -torch.inf if method.gate == "open" else torch.inf)
        return torch.where(self.student_mask, bound + ROUNDING, -torch.inf)


def make_gate(setup: StepSetup, rollouts: Sequence[Rollout], student: StudentScores) -> Gate:
    """The gate of a batch: its draws, and the entropy that its tokens must reach."""
    method, device = setup.method, student.entropy.device
    student_mask = ~column_of(rollouts, [rollout.by_teacher for rollout in rollouts], device, torch.bool)
    uniforms = threshold = None
    if method.gate == "bernoulli":
        stream = GATE_STREAM if setup.is_training else EVALUATION_GATE_STREAM
        draws = [
            addressed_uniforms(setup.seed, setup.step, [rollout.row], len(rollout.response), stream)[0].tolist()
            for rollout in rollouts
        ]
        uniforms = column_of(rollouts, draws, device, torch.float64)
    elif method.gate == "student_entropy":
        threshold = entropy_thresholds(setup, rollouts, student.entropy, student_mask)
    trust, outlier = torch.zeros(2, len(student_mask), device=device)
    return Gate(method, student, student_mask, uniforms, threshold, trust, outlier)


def entropy_thresholds(setup: StepSetup, rollouts: Sequence[Rollout], entropy: Tensor, student_mask: Tensor) -> Tensor:
    """What the student's entropy must reach, [N]: in training one quantile over all tokens and ranks of the step.

    In an evaluation each rollout has its own: a quantile of a batch would depend on the batch size.
    """
    share = setup.method.entropy_share
    assert share is not None
    if setup.is_training:
        threshold = top_share_threshold(setup.ranks.gather_ragged(entropy[student_mask]), share)
        return torch.full_like(entropy, threshold)
    sizes = [len(rollout.scored_positions()) for rollout in rollouts]
    parts = zip(torch.split(entropy, sizes), torch.split(student_mask, sizes), strict=True)
    return torch.cat([torch.full_like(of_row, top_share_threshold(of_row[mask], share)) for of_row, mask in parts])


# ---------------------------------------------------------------------- the teachers' scores


def score_teachers(setup: StepSetup, rollouts: Sequence[Rollout], gate: Gate) -> TeacherScores:
    """One pass of each row's teacher: log-probabilities everywhere, the top-k only where the method reads it.

    Which tokens need the top-k is a matter of their region. So the teacher calls `divide_and_select` slice by slice,
    while it holds the logits: that sets the gate's weights. Where a teacher fails on one rank, every rank stops.
    The top-k of tokens that are logged is requested too, and kept separately.
    """
    method = setup.method
    needed, noted = torch.zeros_like(gate.student_mask), torch.zeros_like(gate.student_mask)
    noted[: sum(sum(rollout.scored) for rollout in rollouts[: setup.noted_rows])] = True  # logged with the top-k
    everywhere = method.trust != "k1" or method.baseline != "none"  # of trusted tokens, too

    def divide_and_select(logp: Tensor, entropy: Tensor, tokens: slice | Tensor) -> Tensor:
        gate.divide(logp, entropy, tokens)
        if method.needs_topk:
            needed[tokens] = gate.outlier[tokens] + (gate.trust[tokens] if everywhere else 0.0) > 0
        return needed[tokens] | noted[tokens]

    request = None
    if method.needs_topk or setup.noted_rows:
        k = method.fkl_top_k if method.needs_topk else setup.noted_topk
        assert k is not None
        events = setup.shared_vocab_size - max(len(setup.endings.as_one) - 1, 0)
        request = TopKRequest(
            min(k, events),
            setup.student_vocab_size,
            divide_and_select,
            below=lambda: gate.most_of_an_outlier().masked_fill(noted, math.inf),
            above=-math.inf if method.teacher_entropy_tau is None else method.teacher_entropy_tau,
        )
    scores = ask_teachers(setup, rollouts, topk=request, keep_hidden=method.needs_full_teacher)
    if request is None:
        gate.divide(scores.logp, scores.entropy, slice(None))
    if setup.noted_rows:
        scores = set_noted_aside(scores, noted, needed)
    scores = without_unusable(scores, method)
    if method.gate == "support" and method.needs_topk:
        sampled = sampled_events(setup, rollouts, scores.topk_index.device)
        outside = scores.topk_index[~in_support(sampled[scores.topk_index], scores.topk_ids, scores.topk_logp)]
        gate.outlier[outside] += gate.trust[outside]
        gate.trust[outside] = 0.0
    return scores


def sampled_events(setup: StepSetup, rollouts: Sequence[Rollout], device: torch.device) -> Tensor:
    """[N], the ids of all scored tokens, any ending as the first of its set."""
    ids = column_of(rollouts, [rollout.response for rollout in rollouts], device, torch.long)
    return events_of(ids, setup.endings.as_one)


def ask_teachers(
    setup: StepSetup,
    rollouts: Sequence[Rollout],
    *,
    scored: Sequence[list[bool]] | None = None,
    endings: Endings | None = None,
    together: bool = True,
    **options: Any,
) -> TeacherScores:
    """The scores of each row's teacher; a failure is explained in a sentence.

    Args:
        setup: see `build_step`.
        rollouts: what is scored.
        scored: for each token of their responses, whether it is; by default what each rollout says.
        endings: ids that are one action; by default as the run has them.
        together: every rank asks, and all stop where a teacher fails on one; else this rank asks alone.
        options: what else `Teachers.score` takes.
    """
    scored = [rollout.scored for rollout in rollouts] if scored is None else scored
    guards = setup.guards
    # A sharded teacher meets the other ranks in its forward pass, where they would not notice a failure.
    together = together and not guards.shards_teacher
    with (
        setup.ranks.failing_together(guards.teacher_failed_elsewhere) if together else nullcontext(),
        teacher_guard(guards.moment, guards.directory),
    ):
        scores = setup.teachers.score(
            [rollout.teacher for rollout in rollouts],
            [rollout.teacher_context for rollout in rollouts],
            [rollout.response for rollout in rollouts],
            scored,
            pad_id=setup.pad_id,
            temperature=setup.temperature,
            rows_per_pass=setup.teacher_rows_per_pass,
            endings=setup.endings.as_one if endings is None else endings,
            **options,
        )
        guards.check_counts(scores, sum(map(sum, scored)))
    return scores


def set_noted_aside(scores: TeacherScores, noted: Tensor, needed: Tensor) -> TeacherScores:
    """Scores whose top-k is that of `needed` tokens, as without a log; that of `noted` tokens is kept separately."""
    index, ids, logp = scores.topk_index, scores.topk_ids, scores.topk_logp
    apart, kept = noted[index], needed[index]
    return replace(
        scores,
        topk_index=index[kept],
        topk_ids=ids[kept],
        topk_logp=logp[kept],
        noted=NotedTopK(index[apart], ids[apart], logp[apart]),
    )


def without_unusable(scores: TeacherScores, method: Method) -> TeacherScores:
    """Scores in which a token without a usable entropy, where `method` reads it, or top-k has no score at all.

    Such a token is excluded from the loss and counted like one whose log-probability is not finite, and its top-k is
    excluded from every mean. −inf in a top-k is a probability of zero.
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


def check_teachers(setup: StepSetup, teacher: TeacherScores, gate: Gate, of_teachers: dict[str, Tensor]) -> None:
    """Stop where a teacher has no finite score for any token of its rows.

    Raises:
        NotFinite: with its name.
    """
    mask = gate.student_mask
    owned = list(of_teachers.values()) or [torch.ones_like(mask)]
    counts = torch.tensor([[(teacher.logp.isfinite() & mine & mask).sum(), (mine & mask).sum()] for mine in owned])
    for name, (finite, tokens) in zip(of_teachers or [None], setup.ranks.sum(counts).tolist(), strict=True):
        if tokens and not finite:
            raise scores_not_finite(tokens, setup.step + 1, setup.guards.directory, name)


# ---------------------------------------------------------------------- signals


def make_signals(
    setup: StepSetup, rollouts: Sequence[Rollout], student: StudentScores, gate: Gate, teacher: TeacherScores
) -> TokenSignals:
    """Everything the loss reads of each token; entries of tokens left out are zero."""
    known = teacher.logp.isfinite()
    rewards = None
    if setup.reward_weight > 0:
        advantages = [[rollout.reward_advantage] * len(rollout.response) for rollout in rollouts]
        rewards = setup.reward_weight * column_of(rollouts, advantages, known.device)
    scale = None
    if setup.advantage_scale is not None:
        scale = torch.full_like(gate.trust, setup.advantage_scale)
    prefix = ~gate.student_mask
    if setup.method.guidance_term == "k1":
        prefix &= known
    signals = TokenSignals(
        # Nothing reads it on a prefix, which the sampler did not draw; but 0·NaN in the loss would not be 0.
        rollout_logp=torch.where(gate.student_mask, student.rollout_logp, student.rollout_logp.nan_to_num(0.0)),
        teacher_logp=torch.where(known, teacher.logp, 0.0),
        trust_weight=torch.where(known, gate.trust, 0.0),
        outlier_weight=torch.where(known, gate.outlier, 0.0),
        guidance_mask=prefix.to(gate.trust.dtype),
        reward_advantage=rewards,
        advantage_scale=scale,
    )
    weighs_turns = setup.method.reduction == "per_turn" or setup.method.turn_trust != "none"
    return weigh_turns(setup.method, rollouts, signals) if weighs_turns else signals


def weigh_turns(method: Method, rollouts: Sequence[Rollout], signals: TokenSignals) -> TokenSignals:
    """The signals with each token's factor by its turn; rewards do not depend on trust in the teacher."""
    lengths = [[sum(rollout.scored[turn.start : turn.stop]) for turn in rollout.turns] for rollout in rollouts]
    counted = signals.trust_weight + signals.outlier_weight + signals.guidance_mask > 0
    weight, rewards = torch.ones_like(signals.trust_weight), signals.reward_advantage
    if method.reduction == "per_turn":
        weight = turn_mean_weights(counted, lengths)
        rewards = None if rewards is None else rewards * weight
    if method.turn_trust == "weight":
        # The teacher's own tokens are accepted.
        accepted = torch.where(signals.guidance_mask > 0, 1.0, trust_probability(signals.log_ratio))
        weight = weight * turn_trust_weights(accepted, counted, lengths)
    return replace(signals, turn_weight=weight, reward_advantage=rewards)


def acceptances(setup: StepSetup, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """For each rollout [n], the probability that its teacher accepts each token that a model wrote.

    The teacher's own tokens are accepted; NaN where it has no finite score. It takes one pass of each model, and no
    collective operation.
    """
    student = score_rollouts(replace(setup, trusts_sampler=False), rollouts)  # records need all ranks to agree
    teacher = ask_teachers(setup, rollouts, together=False)
    known = torch.where(teacher.logp.isfinite(), teacher.logp, torch.nan)
    by_teacher = column_of(rollouts, [rollout.by_teacher for rollout in rollouts], setup.device, torch.bool)
    accepted = torch.where(by_teacher, 1.0, trust_probability(known - student.rollout_logp))
    return list(torch.split(accepted, [sum(rollout.scored) for rollout in rollouts]))


def make_direct(
    setup: StepSetup, rollouts: Sequence[Rollout], signals: TokenSignals, teacher: TeacherScores
) -> DirectTerm | None:
    """The directly differentiated term of the batch, where the method has one."""
    method = setup.method
    if method.needs_full_teacher:
        learned = signals.trust_weight + signals.outlier_weight > 0
        sampled, terms = sampled_events(setup, rollouts, learned.device), []
        for states in teacher.states:
            read = learned[states.index]
            terms.append(full_term(method, signals, states.index[read], states.hidden[read], states.head, sampled))
        return terms[0] if len(terms) == 1 else SeveralTerms(tuple(terms))
    if method.needs_topk:
        return topk_term(method, signals, teacher.topk_index, teacher.topk_ids, teacher.topk_logp)
    return None


# ---------------------------------------------------------------------- micro-batches


def micro_batches(setup: StepSetup, step: Step, rows_each: int, windows: int = 1) -> list[MicroBatch]:
    """A step cut into micro-batches of `rows_each` rollouts.

    Args:
        setup: see `build_step`.
        step: what it gave.
        rows_each: rollouts of one forward-backward.
        windows: optimiser steps that these micro-batches are learned from in; the tokens of each are counted together.
    """
    parts, row, token = [], 0, 0
    while row < len(step.rollouts):
        rows = step.rollouts[row : row + rows_each]
        tokens = slice(token, token + sum(sum(rollout.scored) for rollout in rows))
        parts.append((rows, step.signals[tokens], restrict_term(step.direct, tokens)))
        row, token = row + rows_each, tokens.stop
    per_window = len(parts) // windows
    counts = []
    for start in range(0, len(parts), per_window):
        local = torch.stack([region_counts(signals) for _, signals, _ in parts[start : start + per_window]]).sum(0)
        counts.append(RegionCounts(*setup.ranks.sum(local).tolist()))
    return [
        MicroBatch(
            rows,
            setup.method,
            signals,
            direct,
            counts[number // per_window],
            step.student.from_notes,
            noted=None if number else step.teacher.noted,
        )
        for number, (rows, signals, direct) in enumerate(parts)
    ]


# ---------------------------------------------------------------------- the loss


def learn(setup: StepSetup, model: Callable[..., Any], batch: MicroBatch, every_token: bool) -> FusedLoss:
    """The loss of a micro-batch and its terms, in one pass of the student with gradient.

    Args:
        setup: see `build_step`.
        model: the student as the host has wrapped it.
        batch: one of `micro_batches`.
        every_token: compute the terms of all tokens, also of those that nothing is learned from.
    """
    packed = pack_for_student(batch.rollouts, setup.pad_id, setup.device, by_length=setup.by_length)
    with setup.guards.autocast():
        return model(  # type: ignore[no-any-return]
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            on_hidden=lambda hidden, head: fused_loss(
                packed.states(hidden),
                head.at_temperature(setup.temperature, setup.endings.as_one),
                packed.token_ids,
                batch.method,
                batch.signals,
                batch.counts,
                batch.direct,
                every_token=every_token,
            ),
        )
