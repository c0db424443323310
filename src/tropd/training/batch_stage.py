"""The batch of a step: prompts become rollouts, both models score them, every token gets its region and signals."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..objective.reduce import RegionCounts, region_counts
from ..teacher.local import TeacherScores
from ..teacher.names import called
from .batch import MicroBatch, Rollout
from .callbacks import CollapseGuard
from .faults import check_score_counts, teacher_asked, teacher_failed_elsewhere
from .guards import check_teacher_scores
from .metrics import Totals
from .monitoring import batch_metrics, ending_metrics, log_ratio_quantiles, rollout_metrics, student_log_ratios
from .out_of_memory import SCORING
from .ranks import Ranks
from .rolling_out import RollsOut
from .scoring import (
    Gate,
    StudentScores,
    make_direct,
    make_gate,
    make_signals,
    notes_suffice,
    score_student,
    score_teacher,
    scores_of_sampler,
    split_micro_batches,
    tokens_of_teachers,
    warn_of_a_pass,
    without_unusable,
)
from .sharding import reads_by_length, shards_teacher

ROOM_TO_END = 16
"""Tokens, or an eighth of the budget, that the student must have written behind a teacher's prefix for an unended
rollout to say something."""

EVALUATION_STREAM = 1
"""Addressed draws of evaluation batches come from a stream of their own."""


@dataclass
class Evaluation:
    """What an evaluation adds up over its batches, so that no metric depends on how they were cut."""

    totals: Totals
    log_ratios: list[Tensor] = field(default_factory=list)


class BuildsBatches(RollsOut):
    """`GRPOTrainer` whose batches are rollouts that the student and its teachers have scored."""

    ranks: Ranks
    guard: CollapseGuard
    _evaluated: Evaluation
    _record: Callable[[dict[str, float]], None]

    def _build_batch(self, inputs: list[dict[str, Any]], windows: int) -> list[MicroBatch]:
        """Prompts to micro-batches; everything but the student's gradient is known at the end."""
        training = self.model.training
        method = self.method.stage(self.state.global_step / max(self.state.max_steps, 1))
        totals = Totals(self.teachers.names) if training else self._evaluated.totals
        started = time.perf_counter()
        rollouts = self._roll_out(inputs, totals)
        rolled_out = time.perf_counter()
        known = self._known_to_sampler(rollouts)
        student = self._score_student(rollouts) if known is None else known
        gate = make_gate(
            method,
            rollouts,
            student,
            seed=self.args.seed,
            step=self.state.global_step,
            stream=0 if training else EVALUATION_STREAM,
            gather=self.ranks.gather_ragged,
        )
        scored = time.perf_counter()
        teacher = self._score_teacher(rollouts, gate, student)
        finished = time.perf_counter()
        of_teachers = tokens_of_teachers(rollouts, self.teachers.names, teacher.logp.device)
        self._check_teachers(teacher.logp, gate.student_mask, of_teachers)
        signals = make_signals(rollouts, gate, student, teacher, self.args.reward_mixing_weight)
        totals.add_speed("speed/rollout", sum(r.student_length for r in rollouts), rolled_out - started)
        totals.add_speed("speed/teacher", teacher.logp.numel(), finished - scored)
        rollout_metrics(totals, rollouts, self.endings.unheeded)
        batch_metrics(totals, signals, student, teacher, of_teachers)
        ending_metrics(totals, rollouts, signals, self._tokenizer.eos_token_id)
        log_ratios = student_log_ratios(signals)
        if training:
            metrics = totals.collect(self.ranks.sum) | log_ratio_quantiles(log_ratios, self.ranks.gather_ragged)
            self._record(metrics)
            self.ended_by = self._count_endings(rollouts)
            unheeded = metrics.get("response/unheeded_ending_share", 0.0)
            collapsed, of_all = metrics["response/collapsed_share"], metrics["response/eos_share"]
            self.guard.observe(collapsed, self._ended_share(rollouts), unheeded, of_all)
        else:
            self._evaluated.log_ratios.append(log_ratios)
        direct = make_direct(method, signals, teacher)
        return self._micro_batches(method, rollouts, signals, direct, windows, unread=known is not None)

    def _score_teacher(self, rollouts: list[Rollout], gate: Gate, student: StudentScores) -> TeacherScores:
        """The teachers' scores, one for each token; where one fails on one rank, every rank stops."""
        with self.asking_teacher(gate.student_mask.numel()) as check:
            scores = score_teacher(
                self.teachers,
                rollouts,
                gate,
                student,
                pad_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                rows_per_pass=self.args.teacher_batch_size or self._rows_per_pass,
                student_vocab_size=self._student_vocab_size,
                endings=self.endings.as_one,
            )
            check(scores)
        return without_unusable(scores, gate.method)

    @contextmanager
    def asking_teacher(self, num_tokens: int) -> Iterator[Callable[[TeacherScores], None]]:
        """Inside, the teacher scores `num_tokens`; yields what refuses another number of scores.

        Where it fails on one rank, every rank leaves the block with a sentence.
        """
        moment, directory = self._moment(), self.args.output_dir
        # A sharded teacher meets the other ranks in its forward pass, where they would not notice.
        together = (
            nullcontext()
            if shards_teacher(self)
            else self.ranks.failing_together(lambda: teacher_failed_elsewhere(moment, directory))
        )
        with together, teacher_asked(moment, directory):
            yield lambda scores: check_score_counts(scores, num_tokens, moment, directory)

    def _check_teachers(self, logp: Tensor, student_mask: Tensor, of_teachers: dict[str, Tensor]) -> None:
        """Stop where a teacher has no finite score for any token of its rows."""
        owned = list(of_teachers.values()) or [torch.ones_like(student_mask)]
        counts = torch.tensor(
            [[(logp.isfinite() & mine & student_mask).sum(), (mine & student_mask).sum()] for mine in owned]
        )
        for name, (finite, tokens) in zip(of_teachers or [None], self.ranks.sum(counts).tolist(), strict=True):
            check_teacher_scores(finite, tokens, self.state.global_step + 1, self.args.output_dir, called(name))

    def _ended_share(self, rollouts: list[Rollout]) -> float | None:
        """Share of all ranks' rollouts that the student ended; `None` where none had room for it.

        One that went on behind the teacher's ending has missed its own. One that a teacher's prefix leaves a few tokens
        of the budget says nothing unless it ends.
        """
        ended = [
            rollout.ended and not rollout.wrote_any_of(self.endings.unheeded)
            for rollout in rollouts
            if rollout.ended
            or rollout.prefix_length == 0
            or rollout.student_length >= min(ROOM_TO_END, self.max_completion_length // 8)
            or rollout.wrote_any_of(self.endings.unheeded)
        ]
        total, count = self.ranks.sum(torch.tensor([sum(ended), len(ended)], dtype=torch.float32)).tolist()
        return total / count if count else None

    def _count_endings(self, rollouts: list[Rollout]) -> dict[int, int]:
        """How many of all ranks' rollouts ended by each id."""
        ids = self.eos_token_ids
        counts = torch.tensor([sum(rollout.ended_by == i for rollout in rollouts) for i in ids])
        return {i: int(n) for i, n in zip(ids, self.ranks.sum(counts).tolist(), strict=True) if n}

    def _micro_batches(self, method, rollouts, signals, direct, windows: int, unread: bool) -> list[MicroBatch]:
        per_batch = self.args.per_device_train_batch_size if self.model.training else len(rollouts)
        parts = split_micro_batches(rollouts, signals, direct, [per_batch] * (len(rollouts) // per_batch))
        per_window = len(parts) // windows
        counts = [
            self._global_counts([part[1] for part in parts[w * per_window :][:per_window]]) for w in range(windows)
        ]
        return [
            MicroBatch(rows, method, part_signals, part_direct, counts[number // per_window], unread)
            for number, (rows, part_signals, part_direct) in enumerate(parts)
        ]

    def _global_counts(self, signals: Sequence[Any]) -> RegionCounts:
        return RegionCounts(*self.ranks.sum(torch.stack([region_counts(s) for s in signals]).sum(0)).tolist())

    def _known_to_sampler(self, rollouts: list[Rollout]) -> StudentScores | None:
        """The student's scores as its sampler noted them, where it did so for every token of every rank."""
        if not notes_suffice(self):
            return None
        scores = scores_of_sampler(rollouts, self.accelerator.device)
        lacking = self.ranks.sum(torch.tensor([float(scores is None)])).item()
        if lacking and self.args.rescore_rollouts is False:
            warn_of_a_pass()
        return None if lacking else scores

    def _score_student(self, rollouts: list[Rollout]) -> StudentScores:
        with self._memory_for(SCORING), self.accelerator.autocast():
            return score_student(
                self.model,
                rollouts,
                pad_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                rows_per_pass=self._rows_per_pass,
                device=self.accelerator.device,
                endings=self.endings.as_one,
                by_length=reads_by_length(self),
            )

    @property
    def _rows_per_pass(self) -> int:
        args = self.args
        return args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
