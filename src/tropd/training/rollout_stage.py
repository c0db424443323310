"""The rollouts of a step: teacher prefixes and student continuations, through the host's own rollout.

TRL's `_generate_and_score_completions` calls back into the trainer; `RolloutStage` is what answers there. What the
answers need of the batch is one record, `_Batch`, that exists while the host's call lasts.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers.generation import GenerationMode
from trl.trainer.utils import remove_none_values

from ..modeling import rotates_by_length
from ..rollout.engine.noise import (
    EVALUATION_SAMPLING_STREAM,
    PREFIX_STREAM,
    SAMPLING_STREAM,
    THEIR_LOOP,
    AddressedNoise,
    Turns,
    decoding_through,
)
from ..rollout.engine.notes import SamplerNotes
from ..rollout.guidance import splice
from ..rollout.quality import is_collapsed, is_repetitive
from ..sampling import as_asked
from ..teacher.context import TOOLS, Row, message_ids, text_ids, tools_of, with_observation
from ..teacher.local import LocalTeacher
from .faults import rewards_given, teacher_asked
from .reading_check import check_student, check_teachers
from .records import Rollout
from .sharding import shards_teacher
from .teacher_prefixes import TeacherPrefixes

logger = logging.getLogger(__name__)

VLLM, CONTINUOUS_BATCHING = 2.0, 3.0
"""Engines of their own, as the metric rollout/engine has them."""


@dataclass
class _Batch:
    """One batch while the host rolls it out.

    Attributes:
        rows: as the data have them.
        starts: teacher prefixes that the first turn continues; `None` once it has.
        turns: which row and position a turn's contexts go on at; `None` where draws are not addressed.
        notes: what our own sampler knows of its tokens; `None` where a pass finds it out.
        engines: which decoding loop has written, turn by turn.
        prompts: as the host has tokenised them, an environment's observations included.
    """

    rows: Sequence[Row]
    starts: list[list[int]] | None
    turns: Turns | None
    notes: SamplerNotes | None
    engines: list[float] = field(default_factory=list)
    prompts: Sequence[Any] | None = None


class RolloutStage:
    """Rolls out the rows of a batch, in training, in evaluation and in a preflight.

    Args:
        trainer: a built `TrOPDTrainer`, with its teachers and endings.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.evaluated_rows = 0
        self.engine = THEIR_LOOP
        self._batch: _Batch | None = None
        self._is_read_rightly = False
        self._warned_of_rewards: set[str] = set()
        self.teacher_prefixes = TeacherPrefixes(
            method=trainer.method,
            teachers=trainer.teachers,
            tokenizer=trainer._tokenizer,
            tokenize=lambda rows: self._tokenize_rows(rows)[0],
            eos_ids=list(dict.fromkeys((*trainer.eos_token_ids, *trainer.endings.ids))),
            template_kwargs=trainer.chat_template_kwargs,
            max_length=trainer.max_completion_length,
            min_tail=trainer.args.guidance_min_tail,
            temperature=trainer.temperature,
            vocab_limit=trainer._student_vocab_size,
            num_generations=trainer.num_generations,
            teacher_may_write=not shards_teacher(trainer),
            asking=lambda: teacher_asked(trainer.moment(), trainer.args.output_dir),
            drawing=self._draw_prefixes,
        )

    # ------------------------------------------------------------------ called by a step

    def begin(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """This rank's rows as they were written, and the first one's number among all ranks' rows.

        Once, before the first rollout, both models are asked whether they are what is read of them.
        """
        if not self._is_read_rightly:
            check_student(self.trainer)
            check_teachers(self.trainer)
            self._is_read_rightly = True
        return [self._as_written(row) for row in rows], self._first_row(len(rows))

    def find_prefixes(self, rows: Sequence[Row], first_row: int, fraction: float) -> list[list[int]]:
        """Where each row starts: the first tokens of its teacher's response, as many as the schedule's α allows."""
        return self.teacher_prefixes.prefixes_for(rows, first_row, fraction, gather_object)

    def roll_out(self, rows: Sequence[Row], first_row: int, prefixes: list[list[int]]) -> list[Rollout]:
        """The student's continuations of `prefixes`, through the host."""
        trainer = self.trainer
        addressed = trainer.args.addresses_sampling()
        notes = SamplerNotes(trainer.temperature, trainer.endings.as_one) if notes_suffice(trainer) else None
        self._batch = batch = _Batch(rows, prefixes, Turns(first_row) if addressed else None, notes)
        try:
            with trainer.step_guards().writing():
                host = trainer._generate_and_score_completions(rows)
        finally:
            self._batch = None
        if batch.prompts is not None:
            rows = [with_observation(row, prompt) for row, prompt in zip(rows, batch.prompts, strict=True)]
        self.engine = self._engine_of(batch)
        self._drop_host_metrics()
        return read_rollouts(
            host,
            trainer.teachers.contexts_for(rows, unpad(host["prompt_ids"], host["prompt_mask"])),
            [trainer.teachers.name_for(row) for row in rows],
            prefixes,
            first_row=first_row,
            eos_ids=trainer.eos_token_ids,
            mask_truncated=trainer.args.mask_truncated_completions,
            mask_repetitive=trainer.args.mask_repetitive_completions,
            notes=notes,
        )

    # ------------------------------------------------------------------ called back by the host

    def tokenize_prompts(self, prompts: Sequence[Any], host: Callable) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """The prompts' ids, with the tools that each row brings, and no ending that a tokenizer puts behind text."""
        rows: Sequence[Row] = [{}] * len(prompts)
        if self._batch is not None:
            self._batch.prompts, rows = prompts, self._batch.rows
        return self._tokenize_rows([row | {"prompt": p} for row, p in zip(rows, prompts, strict=True)], host)

    def generate_turn(self, prompt_ids: list[list[int]], host: Callable) -> tuple[list[list[int]], Any]:
        """The host's sampler, continuing from the teacher prefixes on a batch's first turn.

        Args:
            prompt_ids: each row's context.
            host: contexts to what was written behind them, and the sampler's log-probabilities.
        """
        batch = self._batch or _Batch((), None, None, None)
        starts, batch.starts = batch.starts or [[] for _ in prompt_ids], None
        student = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        budget = self.trainer.max_completion_length
        longest = budget - min(map(len, starts), default=0)
        contexts = [[*ids, *start] for ids, start in zip(prompt_ids, starts, strict=True)]
        with (
            self._generation_budget(longest) if any(starts) else nullcontext(),
            as_asked(student),
            self._addressed(batch, student, prompt_ids, starts),
        ):
            written, logps = host(contexts)
        if any(starts):
            columns = zip(starts, written, logps or [None] * len(starts), strict=True)
            pairs = [splice(start, continuation, values, budget) for start, continuation, values in columns]
            written = [ids for ids, _ in pairs]
            logps = None if logps is None else [values for _, values in pairs]
        if batch.turns is not None:
            batch.turns.record(prompt_ids, written)
        return written, logps

    def give_rewards(self, host: Callable[[], Tensor]) -> Tensor:
        """The host's rewards [B, F]; a reward function that fails stops the run in a sentence."""
        trainer = self.trainer
        functions = list(zip(trainer.reward_func_names, trainer.reward_funcs, strict=True))
        with rewards_given(functions, trainer.moment(), trainer.args.output_dir):
            rewards = host()
        if trainer.monitors_rewards:
            self._count_missing_rewards(rewards)
        return rewards.masked_fill(rewards.isinf(), torch.nan)  # which the host leaves out, as it does None

    # ------------------------------------------------------------------ rows

    def _first_row(self, count: int) -> int:
        """Number of this rank's first row among the step's rows, or among all rows of the evaluation under way."""
        accelerator, before = self.trainer.accelerator, 0
        if not self.trainer.model.training:
            before = self.evaluated_rows
            self.evaluated_rows += accelerator.num_processes * count
        return int(before + accelerator.process_index * count)

    def _as_written(self, row: Row) -> Row:
        """A row without the nulls of Arrow's structs in messages and tools: the fields that only other rows have."""
        filled = {name: row[name] for name in self._struct_columns if row.get(name)}
        return row | {name: [_without_nulls(item) for item in items] for name, items in filled.items()}

    @cached_property
    def _struct_columns(self) -> list[str]:
        """The columns of messages and tools that the data sets keep as structs, not as JSON."""
        data = (self.trainer.train_dataset, self.trainer.eval_dataset)
        features = [getattr(one, "features", None) or {} for one in data]
        return [
            name
            for name in ("prompt", "teacher_prompt", "teacher_response", TOOLS)
            if any(isinstance(getattr(of.get(name), "feature", None), dict) for of in features)
        ]

    def _tokenize_rows(
        self, rows: Sequence[Row], host: Callable | None = None
    ) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Each row's prompt as the student reads it; `host` tokenises prompts that tools or an environment come to."""
        trainer, prompts = self.trainer, [row["prompt"] for row in rows]
        if isinstance(prompts[0], str):
            return text_ids(trainer._tokenizer, prompts), None, {}
        if trainer.tools or trainer.environment_factories is not None:
            return (host or trainer.tokenize_as_host)(prompts)  # type: ignore[no-any-return]
        options = trainer.chat_template_kwargs
        return [message_ids(trainer._tokenizer, row["prompt"], tools_of(row), **options) for row in rows], None, {}

    # ------------------------------------------------------------------ draws

    def _draw_prefixes(self, teacher: LocalTeacher, rows: Sequence[int]) -> AbstractContextManager[None]:
        """Inside, the teacher draws one response for each row of the step by that row and the position.

        With any engine of the student's: the teacher writes with Transformers' `generate` in all of them.
        """
        args = self.trainer.args
        if args.addressed_sampling is False:
            return nullcontext()
        places = [(row, 0) for row in rows]
        step = self.trainer.state.global_step
        noise = AddressedNoise(args.seed, step, PREFIX_STREAM, places, rows_at_once=args.rollout_batch_size)
        return decoding_through(teacher.model, noise)

    def _addressed(
        self, batch: _Batch, student: Any, prompt_ids: list[list[int]], starts: list[list[int]]
    ) -> AbstractContextManager[None]:
        """Inside, Transformers' sampler draws by row and position; nothing changes where it does not sample."""
        if batch.turns is None:
            return nullcontext()
        trainer, places = self.trainer, batch.turns.places(prompt_ids)
        if trainer.generation_config.get_generation_mode() != GenerationMode.SAMPLE:
            return nullcontext()
        if places is None:
            logger.warning(
                "The rollout was asked to go on from a context that continues no response of its batch, so the tokens "
                "of this turn come from PyTorch's generator of this rank: another split of the step, or a resumed run, "
                "may draw others."
            )
            return nullcontext()
        noise = AddressedNoise(
            seed=trainer.args.seed,
            step=trainer.state.global_step,
            stream=SAMPLING_STREAM if trainer.model.training else EVALUATION_SAMPLING_STREAM,
            places=[(row, position + len(start)) for (row, position), start in zip(places, starts, strict=True)],
            synced_gpus=self._weights_are_sharded_here(),
            rows_at_once=trainer.args.rollout_batch_size,
            notes=batch.notes,
            used=batch.engines,
        )
        return decoding_through(student, noise)

    def _weights_are_sharded_here(self) -> bool:
        """Does the student's forward pass need every rank, while it writes rollouts?"""
        trainer = self.trainer
        if trainer.accelerator.num_processes == 1:
            return False
        plugin: Any = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        zero3 = trainer.is_deepspeed_enabled and plugin.zero_stage == 3
        return bool(trainer.is_fsdp_enabled or (zero3 and not trainer.args.ds3_gather_for_generation))

    @contextmanager
    def _generation_budget(self, max_new_tokens: int) -> Iterator[None]:
        """Let Transformers' sampler write at most so many tokens; vLLM's writes on and is cut by `splice`."""
        trainer = self.trainer
        if trainer.use_vllm:
            yield
            return
        before = trainer.generation_config.max_new_tokens
        trainer.generation_config.max_new_tokens = trainer.generation_kwargs["max_new_tokens"] = max_new_tokens
        try:
            yield
        finally:
            trainer.generation_config.max_new_tokens = trainer.generation_kwargs["max_new_tokens"] = before

    def _engine_of(self, batch: _Batch) -> float:
        """What has written a batch; see the metric rollout/engine."""
        if self.trainer.use_vllm:
            return VLLM
        if self.trainer.args.use_transformers_continuous_batching:
            return CONTINUOUS_BATCHING
        return sum(batch.engines) / len(batch.engines) if batch.engines else THEIR_LOOP

    # ------------------------------------------------------------------ the host's numbers

    def _count_missing_rewards(self, rewards_BF: Tensor) -> None:
        """A reward that is none, or no finite number, is left out of the host's sums; how many there are is told."""
        trainer, missing = self.trainer, ~rewards_BF.isfinite()
        trainer._metrics["train" if trainer.model.training else "eval"]["rewards/nonfinite_share"].append(
            missing.float().mean().item()
        )
        for name, count in zip(trainer.reward_func_names, missing.sum(0).tolist(), strict=True):
            if count and name not in self._warned_of_rewards and trainer.is_world_process_zero():
                self._warned_of_rewards.add(name)
                logger.warning(
                    "the reward function %s gave no finite number (None, NaN or infinity) for %d of %d rollouts in %s; "
                    "they are left out. Later ones are counted in the metric rewards/nonfinite_share.",
                    name,
                    count,
                    len(rewards_BF),
                    trainer.moment(),
                )

    def _drop_host_metrics(self) -> None:
        """Remove the host's numbers that mean something else here: its lengths count the teacher's prefix."""
        trainer = self.trainer
        metrics = trainer._metrics["train" if trainer.model.training else "eval"]
        for name in list(metrics):
            rewards = name.startswith("reward") or name == "frac_reward_zero_std"
            if name.startswith("completions/") or (rewards and not trainer.monitors_rewards):
                del metrics[name]


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


def _without_nulls(item: dict[str, Any]) -> dict[str, Any]:
    """A message or a tool without nulls but for the content of a message, which may be null."""
    return {**remove_none_values(item), **({"content": None} if item.get("content", "") is None else {})}


# ---------------------------------------------------------------------- from the host's tensors to records


def unpad(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The kept token ids of each row."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def read_rollouts(
    host: dict[str, Any],
    contexts: Sequence[list[int]],
    teachers: Sequence[str | None],
    starts: Sequence[list[int]],
    *,
    first_row: int,
    eos_ids: Sequence[int],
    mask_truncated: bool,
    mask_repetitive: bool,
    notes: SamplerNotes | None = None,
) -> list[Rollout]:
    """One record for each row of what TRL's rollout returns.

    Args:
        host: the output of `_generate_and_score_completions`.
        contexts: what the teacher sees, row by row.
        teachers: the name of each row's teacher.
        starts: the teacher prefixes that the responses begin with.
        first_row: number of the first row in the whole step.
        eos_ids: every id that ends a response.
        mask_truncated: leave rollouts without an ending out of the loss.
        mask_repetitive: leave rollouts that end in a repeating cycle out of the loss.
        notes: what our own sampler knew of the tokens.
    """
    prompt_ids = unpad(host["prompt_ids"], host["prompt_mask"])
    responses = unpad(host["completion_ids"], host["completion_mask"])
    tool_mask, sampler = host.get("tool_mask"), host.get("sampling_per_token_logps")
    rollouts = []
    for i, (response, start) in enumerate(zip(responses, starts, strict=True)):
        written = response[len(start) :]
        ended_by = written[-1] if written and written[-1] in eos_ids else None
        repetitive = is_repetitive(written)
        noted = None
        if notes is not None and sampler is None:
            noted = notes.of(first_row + i, prompt_ids[i], response)
        rollouts.append(
            Rollout(
                row=first_row + i,
                prompt_ids=prompt_ids[i],
                teacher_context=contexts[i],
                response=response,
                prefix_length=len(start),
                external=None if tool_mask is None else (tool_mask[i][: len(response)] == 0).tolist(),
                sampler_logps=noted.logps if noted else _logps_of(sampler, i, len(response)),
                sampler_entropies=noted.entropies if noted else None,
                reward_advantage=float(host["advantages"][i]),
                ended_by=ended_by,
                repetitive=repetitive,
                collapsed=is_collapsed(written, eos_ids, guided=bool(start)),
                included=not (mask_truncated and ended_by is None) and not (mask_repetitive and repetitive),
                teacher=teachers[i],
            )
        )
    return rollouts


def _logps_of(sampler: Tensor | None, row: int, length: int) -> list[float] | None:
    return None if sampler is None else sampler[row][:length].tolist()  # type: ignore[no-any-return]
