"""From records to sums, and from sums to the metrics of the table; nothing here changes what is learned.

N counts scored tokens.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...objective.head.fused_loss import FusedLoss
from ...objective.loss import TokenSignals, TopKTerm, active_tokens
from ...objective.reduce import denominators, reduced_parts
from ...objective.regions import trust_probability
from ...teacher.endings import PairEndings
from ...teacher.local import TeacherScores
from ..distributed.ranks import Ranks
from ..records import MicroBatch, Rollout
from ..step import Step, StudentScores
from .metrics import metric_names, named_metric

OUTLIER = -2.0
"""r, in nats, below which an ending is counted as an outlier: the default τ of clip and mask."""

ROOM_TO_END = 16
"""Tokens, or an eighth of the budget, that the student must have written after a teacher's prefix for an unended
rollout to be informative."""

QUANTILES = {"log_ratio/p01": 0.01, "log_ratio/p50": 0.5, "log_ratio/p99": 0.99}


class Totals:
    """Named sums with counts, added up over micro-batches and ranks and turned into means at the end.

    Args:
        teachers: the names of several teachers.

    Attributes:
        log_ratios: r of the student tokens that have one, batch by batch; their quantiles are metrics.
    """

    def __init__(self, teachers: tuple[str, ...] = ()) -> None:
        # One row for every metric of the table, so that ranks always exchange tensors of one shape.
        # Columns: sum, count, and how often the name was added as a plain sum.
        self._row = {name: row for row, name in enumerate(metric_names(teachers))}
        self._table = torch.zeros(len(self._row), 3, dtype=torch.float64)
        self.log_ratios: list[Tensor] = []

    def add(self, name: str, total: Tensor | float, count: Tensor | float | None = None) -> None:
        """Add `total` over `count` items to the mean called `name`; without a count it is a sum over the step.

        A mean over zero items is left out, such as tokens that took no time by the clock.
        """
        columns = [float(total), 0.0, 1.0] if count is None else [float(total), float(count), 0.0]
        if count is None or columns[1] > 0:
            self._table[self._row[name]] += torch.tensor(columns, dtype=torch.float64)

    def add_mean(self, name: str, values: Tensor, weights: Tensor) -> None:
        """Add a weighted mean; entries of weight zero may be anything, infinite included."""
        used = weights > 0
        self.add(name, (values[used].double() * weights[used].double()).sum(), weights[used].double().sum())

    def collect(self, ranks: Ranks) -> dict[str, float]:
        """Global sums, means and quantiles; a mean whose global count is zero is absent, not zero."""
        collected = {}
        for name, (total, count, sums) in zip(self._row, ranks.sum(self._table).tolist(), strict=True):
            if sums > 0:
                collected[name] = total
            elif count > 0:
                collected[name] = total / count
        if self.log_ratios:  # on all ranks, as each has as many batches
            values = ranks.gather_ragged(torch.cat(self.log_ratios)).sort().values
            last = values.numel() - 1
            # Picked from the sorted values: torch.quantile refuses more than 16 million of them.
            collected |= {name: values[round(q * last)].item() for name, q in QUANTILES.items() if last >= 0}
        return collected


def step_metrics(totals: Totals, step: Step, endings: PairEndings, own_ending: int | None) -> None:
    """All metrics of a batch that are known before its first update.

    `own_ending` is that of the student's tokenizer.
    """
    on_policy = step.signals.trust_weight + step.signals.outlier_weight
    if step.guidance_fraction is not None:
        totals.add("guidance/fraction", step.guidance_fraction, 1)
    totals.add("rollout/engine", step.rollouts[0].engine, 1)
    totals.add("speed/rollout", sum(rollout.student_length for rollout in step.rollouts), step.seconds[0])
    totals.add("speed/teacher", step.teacher.logp.numel(), step.seconds[1])
    rollout_metrics(totals, step.rollouts, endings.unheeded)
    if any(rollout.is_cut is not None for rollout in step.rollouts):
        episode_metrics(totals, step.rollouts, step.signals)
    batch_metrics(totals, step.signals, step.student, step.teacher, step.of_teachers)
    # Which ids end the responses, and how the teacher scores them.
    ended = [rollout for rollout in step.rollouts if rollout.ended]
    totals.add("response/other_ending_share", sum(rollout.ended_by != own_ending for rollout in ended), len(ended))
    stops = torch.tensor([sum(rollout.scored) for rollout in step.rollouts]).cumsum(0)
    is_read = torch.tensor([rollout.ended and rollout.scored[-1] for rollout in step.rollouts])
    last = (stops[is_read] - 1).to(on_policy.device)
    totals.add_mean("log_ratio/ending_outlier_share", (step.signals.log_ratio[last] < OUTLIER).float(), on_policy[last])


def ended_share(
    rollouts: Sequence[Rollout],
    unheeded: Sequence[int],
    budget: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> float | None:
    """Share of all ranks' rollouts that the student ended; `None` where none had room for it.

    One that continued after the teacher's ending has missed its own. One that a teacher's prefix leaves a few tokens of
    the budget says nothing unless it ends, and neither does one that begins as a response that is itself too long.
    `unheeded` are endings of a teacher at which the student does not stop, `budget` the tokens that prefix and
    continuation may have together.
    """
    ended, room = [], min(ROOM_TO_END, budget // 8)
    for rollout in rollouts:
        missed = bool(unheeded) and rollout.wrote_any_of(unheeded)
        has_room = rollout.student_length >= room and not rollout.is_prefix_endless
        if rollout.ended or missed or has_room or not any(rollout.by_teacher):
            ended.append(rollout.ended and not missed)
    total, count = sum_over_ranks(torch.tensor([sum(ended), len(ended)], dtype=torch.float32)).tolist()
    return total / count if count else None


def rollout_metrics(totals: Totals, rollouts: Sequence[Rollout], unheeded: Sequence[int] = ()) -> None:
    """Lengths, endings and repetition; the teacher's prefix is counted separately.

    `unheeded` are endings of a teacher at which the student does not stop.
    """
    count = len(rollouts)
    totals.add("response/length", sum(rollout.student_length for rollout in rollouts), count)
    totals.add("response/truncated_share", sum(not rollout.ended for rollout in rollouts), count)
    totals.add("response/eos_share", sum(rollout.ended for rollout in rollouts), count)
    if unheeded:
        totals.add("response/unheeded_ending_share", sum(rollout.wrote_any_of(unheeded) for rollout in rollouts), count)
    totals.add("response/repetitive_share", sum(rollout.repetitive for rollout in rollouts), count)
    totals.add("response/collapsed_share", sum(rollout.collapsed for rollout in rollouts), count)
    totals.add("response/excluded_share", sum(not rollout.included for rollout in rollouts), count)
    totals.add("guidance/prefix_length", sum(sum(rollout.by_teacher) for rollout in rollouts), count)


def episode_metrics(totals: Totals, rollouts: Sequence[Rollout], signals: TokenSignals) -> None:
    """Turns, how they end and who wrote them, and the trust in the student's first and last."""
    count = len(rollouts)
    totals.add("agent/turns", sum(len(rollout.turns) for rollout in rollouts), count)
    totals.add("agent/cut_share", sum(bool(rollout.is_cut) for rollout in rollouts), count)
    taught = [sum(rollout.by_teacher[turn.start] for turn in rollout.turns) for rollout in rollouts]
    totals.add("guidance/turns", sum(taught), count)
    recorded = [rollout.stale for rollout in rollouts if rollout.stale is not None]
    totals.add("guidance/stale_share", sum(recorded), len(recorded))
    trust, on_policy = trust_probability(signals.log_ratio), signals.trust_weight + signals.outlier_weight
    first, last = torch.zeros(2, len(trust), dtype=torch.bool, device=trust.device)
    start = 0
    for rollout in rollouts:
        number = {position: start + n for n, position in enumerate(rollout.scored_positions())}
        own = [turn for turn in rollout.turns if not rollout.by_teacher[turn.stop - 1]]
        for marks, turns in ((first, own[:1]), (last, own[1:][-1:])):
            marks[[number[position] for turn in turns for position in turn if position in number]] = True
        start += len(number)
    if signals.turn_weight is not None:
        totals.add_mean("agent/turn_weight", signals.turn_weight, on_policy)
    totals.add_mean("agent/trust_first_turn", trust, on_policy * first)
    totals.add_mean("agent/trust_last_turn", trust, on_policy * last)


def batch_metrics(
    totals: Totals,
    signals: TokenSignals,
    student: StudentScores,
    teacher: TeacherScores,
    of_teachers: Mapping[str, Tensor] | None = None,
) -> None:
    """Regions, log ratios, entropies and the teacher's top-k mass, before the update; and for each of several teachers.

    `of_teachers` has for each name of a teacher, as bool [N], which tokens are its own.
    """
    on_policy = signals.trust_weight + signals.outlier_weight
    log_ratio = signals.log_ratio
    totals.add("regions/num_trust", signals.trust_weight.sum())
    totals.add("regions/num_outlier", signals.outlier_weight.sum())
    totals.add("regions/num_guidance", signals.guidance_mask.sum())
    totals.add("teacher/nonfinite_tokens", (~teacher.logp.isfinite()).sum())
    totals.add_mean("trust/fraction", trust_probability(log_ratio), on_policy)
    totals.add_mean("trust/share", signals.trust_weight, on_policy)
    totals.log_ratios.append(log_ratio[on_policy > 0].float())
    totals.add_mean("log_ratio/negative_share", (log_ratio < 0).float(), on_policy)
    totals.add_mean("kl/k1", -log_ratio, on_policy)
    totals.add_mean("entropy/student", student.entropy, on_policy)
    totals.add_mean("entropy/teacher", teacher.entropy, on_policy * teacher.entropy.isfinite())
    reading_metrics(totals, signals, student.sampler_logp, student.trainer_logp)
    if teacher.topk_logp.numel():
        masses = teacher.topk_logp.exp().sum(-1)
        totals.add_mean("teacher/topk_mass", masses, torch.ones_like(masses))
    for name, mine in (of_teachers or {}).items():
        _teacher_metrics(totals, name, mine, signals, teacher)


def _teacher_metrics(totals: Totals, name: str, mine: Tensor, signals: TokenSignals, teacher: TeacherScores) -> None:
    """The metrics of all rows, on the rows of one teacher; absent where it has none."""
    weights = (signals.trust_weight + signals.outlier_weight) * mine
    totals.add_mean(named_metric("teacher/<name>/trust_fraction", name), trust_probability(signals.log_ratio), weights)
    totals.add_mean(named_metric("teacher/<name>/k1", name), -signals.log_ratio, weights)
    totals.add_mean(named_metric("teacher/<name>/entropy", name), teacher.entropy, weights * teacher.entropy.isfinite())
    if mine.any():
        totals.add(named_metric("teacher/<name>/num_tokens", name), weights.sum())


def reading_metrics(totals: Totals, signals: TokenSignals, sampler_logp: Tensor, trainer_logp: Tensor) -> None:
    """Metrics that need a pass of the student: of prefixes, and of the sampler; NaN is a token that it did not read."""
    read = trainer_logp.isfinite()
    on_policy = signals.trust_weight + signals.outlier_weight
    totals.add_mean("guidance/nll", -trainer_logp, signals.guidance_mask * read)
    totals.add_mean("sampler/logp_gap", (sampler_logp - trainer_logp).abs(), on_policy * sampler_logp.isfinite() * read)


def loss_metrics(window: Totals, batch: MicroBatch, terms: FusedLoss, part_of_evaluation: float | None = None) -> None:
    """The loss by region, the forward KL where there is one, and the student's mass on the teacher's top-k.

    The update of a batch from notes is the first pass over it, and says what that pass would have said. In training the
    parts of a step add up. In an evaluation batches are weighed by their tokens, and `part_of_evaluation` says which
    part of the processes' counts is this one's.
    """
    divided_by = denominators(batch.counts, batch.method.reduction)
    for name, value in reduced_parts(terms.losses, batch.counts, batch.method.reduction).items():
        if part_of_evaluation is None:
            window.add(f"loss/{name}", value.detach())
        else:
            window.add(f"loss/{name}", value.detach() * divided_by[name], divided_by[name] * part_of_evaluation)
    if batch.from_notes and batch.first_update:
        read = active_tokens(batch.method, batch.signals)  # others are projected for the rollout log alone
        student_logp = torch.where(read, terms.student_logp, torch.nan)
        reading_metrics(window, batch.signals, batch.signals.rollout_logp, student_logp)
    if isinstance(batch.direct, TopKTerm):
        index = batch.direct.index
        ones = torch.ones_like(index, dtype=terms.direct.dtype)
        if batch.method.outlier_uses_fkl:
            window.add_mean("kl/outlier_forward", terms.direct[index], ones)
        window.add_mean("student/topk_mass", terms.topk_mass[index], ones)
