"""A few real prompts rolled out and scored by a built trainer, before it trains and without leaving a trace.

N counts the scored response tokens of all ranks, row after row; K is the teacher's top-k.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..objective.endings import Endings, one_action
from ..objective.head.layer import logps_of, scan_vocabulary
from ..teacher.endings import special_ids
from ..teacher.local import TeacherScores, TopKRequest
from ..training.guards.faults import SCORING
from ..training.records import Rollout, pack_for_student
from ..training.step import ask_teachers, make_rollouts, score_rollouts, score_student
from ..training.trainer import TrOPDTrainer
from .episode_measurement import call_opener
from .no_trace import without_a_trace
from .probe_records import Probe, ProbedEndings, ProbedPrompts, ProbedTokens, ProbeTimes

DEFAULT_TOP_K = 64
"""k asked of the teacher where the method reads none: the k of every forward-KL method of the paper."""

MOST_CANDIDATES = 64
"""Ids whose probability is looked at where responses end: E, then special tokens by their ids."""


def is_sharded(trainer: TrOPDTrainer) -> bool:
    """Does FSDP or DeepSpeed shard the student? They do so when training begins, and no sooner."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def probe(trainer: TrOPDTrainer, rows: Sequence[dict[str, Any]]) -> Probe:
    """Roll out and score `rows` with everything as in training, except that there are no teacher prefixes.

    Each row is rolled out `num_generations_eval` times (TRL's default: `num_generations`), in batches of training's
    size; with several processes, as often as an equal part for each asks for. Call it on every rank with the same rows.
    Random states, metrics, logged completions and training modes are left as they were, so that a run after a probe is
    bit for bit the run without one. (vLLM keeps its own random state, which is not ours to put back.)

    The trainer is built and does not train yet, or is in a callback's `on_train_begin`; `rows` are some of its data.

    Raises:
        ValueError: no rows, or a student that is not sharded yet.
    """
    if len(rows) == 0:
        raise ValueError("rows is empty; a probe needs at least one row of the data set.")
    if is_sharded(trainer) and not trainer.is_in_train:
        raise ValueError(
            "the student is to be sharded by FSDP or DeepSpeed, which happens only when training begins. Call probe in "
            "a callback's on_train_begin, or probe on one process."
        )
    with torch.no_grad(), without_a_trace(trainer), _training_rows(trainer.args):
        parts = gather_object([_probe_batch(trainer, batch) for batch in _batches(trainer, list(rows))])
        rollouts = [rollout for part in parts for rollout in part.rollouts]
        student, teacher, ends = map(torch.cat, zip(*(part.endings for part in parts), strict=True))
        candidates = _ending_candidates(trainer)
        return Probe(
            rollouts=rollouts,
            tokens=_joined(parts),
            prompts=_read_prompts(trainer, rollouts),
            endings=ProbedEndings(trainer.endings, candidates, student, teacher, ends[:, 0], ends[:, 1]),
            times=_times(trainer, parts),
            top_k=_top_k(trainer),
            topk_mass_curve=sum(part.mass_sums for part in parts) / max(1, sum(len(p.tokens.rollout) for p in parts)),
            vocab_size=trainer.shared_vocab_size,
            temperature=trainer.temperature,
            call_opener=call_opener(trainer) if trainer.tools else None,
        )


@contextmanager
def _training_rows(args: Any) -> Iterator[None]:
    """Passes of as many rows as training's, which the memory allows; the trainer is in evaluation mode here."""
    before = args.per_device_eval_batch_size
    args.per_device_eval_batch_size = args.per_device_train_batch_size
    try:
        yield
    finally:
        args.per_device_eval_batch_size = before


# ---------------------------------------------------------------------- one batch on one rank


@dataclass(frozen=True)
class _Part:
    rank: int
    rollouts: list[Rollout]
    tokens: ProbedTokens
    mass_sums: Tensor
    endings: tuple[Tensor, Tensor, Tensor]
    seconds: tuple[float, float, float]


def _batches(trainer: TrOPDTrainer, rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """This rank's rows of each batch, rollouts of a prompt side by side as TRL's evaluation sampler has them."""
    group = int(trainer.num_generations_eval or trainer.num_generations or 1)
    ranks = trainer.accelerator.num_processes
    smallest = ranks // math.gcd(ranks, group)  # prompts that give every rank the same number of rollouts
    size = max(smallest, trainer.args.generation_batch_size // group // smallest * smallest)
    needed = math.ceil(len(rows) / smallest) * smallest
    prompts = [rows[number % len(rows)] for number in range(needed)]
    for start in range(0, needed, size):
        repeated = [dict(row) for row in prompts[start : start + size] for _ in range(group)]
        local = len(repeated) // ranks
        yield repeated[trainer.accelerator.process_index * local :][:local]


def _probe_batch(trainer: TrOPDTrainer, inputs: list[dict[str, Any]]) -> _Part:
    clock = [time.perf_counter()]
    setup = replace(trainer.step_setup(), trusts_sampler=False)
    _, rollouts = make_rollouts(setup, trainer.rollout_stage, inputs)
    clock.append(time.perf_counter())
    student = score_rollouts(setup, rollouts)
    on_cpu = {name: getattr(student, name).cpu() for name in ("rollout_logp", "trainer_logp", "entropy")}
    clock.append(time.perf_counter())
    teacher = _score_teacher(trainer, rollouts, [rollout.scored for rollout in rollouts], trainer.endings.as_one)
    teacher_logp = teacher.logp.float().cpu()  # waits for the device, so that the clock is right
    clock.append(time.perf_counter())
    ends = _ends(trainer, rollouts, teacher)
    collision, student_mass, student_endings = _second_reading(trainer, rollouts, teacher.topk_ids)
    cumulative = teacher.topk_logp.float().exp().cumsum(-1)
    places = [(row, place) for row, rollout in enumerate(rollouts) for place in rollout.scored_positions()]
    rollout_index, position = torch.tensor(places, dtype=torch.long).view(-1, 2).T
    tokens = ProbedTokens(
        rollout=rollout_index,
        position=position,
        student_logp=on_cpu["rollout_logp"],
        trainer_logp=on_cpu["trainer_logp"],
        student_entropy=on_cpu["entropy"],
        student_collision=collision.float().cpu(),
        student_topk_mass=student_mass.float().cpu(),
        teacher_logp=teacher_logp,
        teacher_entropy=teacher.entropy.float().cpu(),
        teacher_topk_mass=cumulative[:, -1].cpu(),
    )
    rolling, reading, scoring = (end - begin for begin, end in pairwise(clock))
    seconds = (rolling, reading, scoring)
    there = ends.any(-1)
    endings = (student_endings.float().cpu()[there], _teacher_endings(trainer, rollouts, teacher, there), ends[there])
    return _Part(trainer.accelerator.process_index, rollouts, tokens, cumulative.sum(0).cpu(), endings, seconds)


def _ending_candidates(trainer: TrOPDTrainer) -> tuple[int, ...]:
    """E, and every id that is no text: a model may end with one that nobody declares."""
    found = dict.fromkeys(trainer.endings.ids + trainer.endings.stop_ids)
    for tokenizer in (trainer._tokenizer, *trainer.teacher_tokenizers.values()):
        found |= {} if tokenizer is None else dict.fromkeys(special_ids(tokenizer))
    return tuple(i for i in found if i < trainer.shared_vocab_size)[:MOST_CANDIDATES]


def _ends(trainer: TrOPDTrainer, rollouts: list[Rollout], teacher: TeacherScores) -> Tensor:
    """bool [N, 2]: where the student's responses ended, and where the teacher finds an ending likeliest."""
    last = [
        rollout.ended and position == len(rollout.response) - 1
        for rollout in rollouts
        for position in rollout.scored_positions()
    ]
    likeliest = teacher.topk_ids[:, 0].cpu()
    would = torch.isin(likeliest, torch.tensor(trainer.endings.ids, dtype=likeliest.dtype))
    return torch.stack([torch.tensor(last, dtype=torch.bool), would], -1)


def _teacher_endings(trainer: TrOPDTrainer, rollouts: list[Rollout], teacher: TeacherScores, there: Tensor) -> Tensor:
    """[P, C]: what the teacher gives each candidate at the places `there` [N]; one more pass where E is one action."""
    ids, logp = teacher.topk_ids.cpu()[there], teacher.topk_logp.float().cpu()[there]
    if trainer.endings.merged:
        marks, start = [], 0
        for rollout in rollouts:
            stop = start + sum(rollout.scored)
            here = iter(there[start:stop].tolist())
            marks.append([scored and next(here) for scored in rollout.scored])
            start = stop
        apart = _score_teacher(trainer, rollouts, marks, endings=())
        ids, logp = apart.topk_ids.cpu(), apart.topk_logp.float().cpu()
    candidates = torch.tensor(_ending_candidates(trainer), dtype=ids.dtype)
    return ((ids[:, :, None] == candidates) * logp.exp()[:, :, None]).sum(1)


def _score_teacher(
    trainer: TrOPDTrainer, rollouts: list[Rollout], marks: list[list[bool]], endings: Endings
) -> TeacherScores:
    def everywhere(logp: Tensor, entropy: Tensor, tokens: slice | Tensor) -> Tensor:
        return torch.ones_like(logp, dtype=torch.bool)

    setup, request = trainer.step_setup(), TopKRequest(_top_k(trainer), trainer._student_vocab_size, everywhere)
    return ask_teachers(setup, rollouts, scored=marks, topk=request, endings=endings)


def _second_reading(trainer: TrOPDTrainer, rollouts: list[Rollout], topk_ids_NK: Tensor) -> tuple[Tensor, ...]:
    """What training's own pass does not tell: Σ π_S² and the student's mass on the teacher's top-k, [N] each, with the
    endings as training has them; and the probability of every candidate for an ending by itself, [N, C].
    """
    candidates, columns, done = list(_ending_candidates(trainer)), [], 0
    for start in range(0, len(rollouts), trainer.step_setup().rows_per_pass):
        packed = pack_for_student(
            rollouts[start : start + trainer.step_setup().rows_per_pass],
            trainer._tokenizer.pad_token_id,
            trainer.accelerator.device,
        )
        topk_ids = topk_ids_NK[done : done + packed.token_ids.numel()]
        done += packed.token_ids.numel()

        def numbers(logits_CV: Tensor, tokens: slice, topk_ids: Tensor = topk_ids) -> tuple[Tensor, ...]:
            endings = logps_of(logits_CV)[:, candidates].exp()
            probs_CV = logps_of(one_action(logits_CV, trainer.endings.as_one)).exp()
            masses = probs_CV.gather(-1, topk_ids[tokens].to(probs_CV.device).long()).sum(-1)
            return probs_CV.square().sum(-1), masses, endings

        with trainer.step_guards().memory(SCORING), trainer.accelerator.autocast():
            columns.append(
                trainer.model(
                    input_ids=packed.input_ids,
                    attention_mask=packed.attention_mask,
                    on_hidden=lambda hidden, head, packed=packed, numbers=numbers: scan_vocabulary(
                        numbers, packed.states(hidden), head.at_temperature(trainer.temperature)
                    ),
                )
            )
    return tuple(map(torch.cat, zip(*columns, strict=True)))


def _top_k(trainer: TrOPDTrainer) -> int:
    merged = max(len(trainer.endings.as_one) - 1, 0)
    most = trainer.teachers.most_topk
    asked = trainer.method.fkl_top_k or min(DEFAULT_TOP_K, DEFAULT_TOP_K if most is None else max(most - merged, 1))
    return min(asked, trainer.shared_vocab_size - merged)


# ---------------------------------------------------------------------- all batches and ranks


def _joined(parts: Sequence[_Part]) -> ProbedTokens:
    first, columns = 0, defaultdict(list)
    for part in parts:
        for field in fields(ProbedTokens):
            offset = first if field.name == "rollout" else 0
            columns[field.name].append(getattr(part.tokens, field.name) + offset)
        first += len(part.rollouts)
    return ProbedTokens(**{name: torch.cat(values) for name, values in columns.items()})


def _read_prompts(trainer: TrOPDTrainer, rollouts: Sequence[Rollout]) -> ProbedPrompts:
    """Both models' reading of the distinct prompts; every rank reads all, so that sharded forwards keep step."""
    seen = {(tuple(r.prompt_ids), tuple(r.teacher_context), r.teacher) for r in rollouts}
    pairs = sorted(seen, key=lambda pair: (pair[0], pair[1], pair[2] or ""))
    texts = [
        Rollout(row, list(ours[:1]), list(theirs[:1]), response=list(ours[1:]), teacher=teacher)
        for row, (ours, theirs, teacher) in enumerate(pairs)
    ]
    setup = replace(trainer.step_setup(), temperature=1.0, by_length=False)
    with setup.guards.memory(SCORING), setup.guards.autocast():
        student = score_student(setup, texts)
    theirs = [replace(text, response=list(context[1:])) for text, (_, context, _) in zip(texts, pairs, strict=True)]
    teacher = ask_teachers(setup, theirs)
    return ProbedPrompts(len(pairs), student.trainer_logp.float().cpu(), teacher.logp.float().cpu())


def _times(trainer: TrOPDTrainer, parts: Sequence[_Part]) -> ProbeTimes:
    by_rank: dict[int, list[_Part]] = defaultdict(list)
    for part in parts:
        by_rank[part.rank].append(part)
    seconds = [[sum(stage) for stage in zip(*[p.seconds for p in mine], strict=True)] for mine in by_rank.values()]
    rollout, student, teacher = (max(column) for column in zip(*seconds, strict=True))
    batches = list(zip(*by_rank.values(), strict=True))
    rollouts = [rollout for part in parts for rollout in part.rollouts]
    return ProbeTimes(
        rollout_seconds=rollout,
        student_seconds=student,
        teacher_seconds=teacher,
        num_processes=trainer.accelerator.num_processes,
        rows_per_rank=tuple(len(batch[0].rollouts) for batch in batches),
        longest_responses=tuple(max(len(r.response) for part in batch for r in part.rollouts) for batch in batches),
        prompt_tokens=sum(len(r.prompt_ids) for r in rollouts),
        response_tokens=sum(r.student_length for r in rollouts),
        scored_tokens=sum(len(part.tokens.rollout) for part in parts),
    )
