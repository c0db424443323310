"""The rollout stage of a trainer: teacher prefixes and student continuations, through the host's own rollout."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers.generation import GenerationMode
from trl.trainer.utils import remove_none_values

from ..endings import PairEndings, as_ids, declared, pair_endings
from ..objective.methods import Method
from ..objective.schedules import guidance_fraction
from ..rollout.addressed import (
    EVALUATION_SAMPLING_STREAM,
    PREFIX_STREAM,
    SAMPLING_STREAM,
    THEIR_LOOP,
    AddressedNoise,
    Turns,
    decoding_through,
    drawing_without_address,
)
from ..rollout.guidance import splice
from ..rollout.notes import SamplerNotes
from ..sampling import as_asked
from ..teacher.context import TOOLS, Row, message_ids, text_ids, tools_of, with_observation
from ..teacher.local import LocalTeacher
from ..teacher.several import Teachers
from .batch import Rollout
from .faults import PREFLIGHT, rewards_given, teacher_asked
from .guards import finite_softmax
from .metrics import Totals
from .out_of_memory import EVALUATED_ROWS, TRAINED_ROWS, WRITING, enough_memory
from .prefix_stage import PrefixStage
from .reading import read_rollouts, unpad
from .reading_check import check_student, check_teachers
from .saving import WholeCheckpoints
from .scoring import notes_suffice
from .sharding import shards_teacher

logger = logging.getLogger(__name__)

VLLM, CONTINUOUS_BATCHING = 2.0, 3.0
"""Engines of their own, as the metric rollout/engine has them."""


def _without_nulls(item: dict[str, Any]) -> dict[str, Any]:
    """A message or a tool without nulls but for the content of a message, which may be null."""
    return {**remove_none_values(item), **({"content": None} if item.get("content", "") is None else {})}


class RollsOut(WholeCheckpoints):
    """`GRPOTrainer` whose rollouts start from teacher prefixes and are drawn by row and position."""

    model: Any
    method: Method
    teachers: Teachers
    teacher_tokenizers: dict[Any, Any]
    endings: PairEndings
    chat_template_kwargs: Any
    max_completion_length: Any
    num_generations: Any
    _monitors_rewards: bool
    _student_vocab_size: int
    _prefix_stage: PrefixStage
    _pending_prefixes: list[list[int]] | None
    _turns: Turns | None
    _notes: SamplerNotes | None
    _loops: list[float]
    _is_read_rightly = False
    _rows: Sequence[Row] | None = None
    _asked: Sequence[Any] | None = None
    _said_of_rewards: set[str]
    _evaluated_rows: int
    in_preflight = False

    def _make_prefix_stage(self) -> PrefixStage:
        return PrefixStage(
            method=self.method,
            teachers=self.teachers,
            tokenizer=self._tokenizer,
            tokenize=self._prompt_ids,
            eos_ids=self._every_ending,
            template_kwargs=self.chat_template_kwargs,
            max_length=self.max_completion_length,
            min_tail=self.args.guidance_min_tail,
            temperature=self.temperature,
            vocab_limit=self._student_vocab_size,
            num_generations=self.num_generations,
            teacher_may_write=not shards_teacher(self),
            asking=lambda: teacher_asked(self._moment(), self.args.output_dir),
            drawing=self._drawing_prefixes,
        )

    def _find_endings(self) -> PairEndings:
        """How this run's responses end; the sampler, and the model as it is saved, stop accordingly."""
        teachers = {
            name: declared(teacher.model.generation_config, self.teacher_tokenizers[name])
            for name, teacher in self.teachers.by_name.items()
        }
        found = pair_endings(
            declared(self.model.generation_config, self._tokenizer),
            teachers,
            ending=self.args.ending,
            ending_ids=self.args.ending_ids,
            vocab_size=self.teachers.shared_vocabulary(self._student_vocab_size),
        )
        if set(found.stop_ids) - set(as_ids(self.model.generation_config.eos_token_id)):
            self.model.generation_config.eos_token_id = list(found.stop_ids)
        if set(found.stop_ids) != set(self.eos_token_ids):
            self.eos_token_ids = self.model.generation_config.eos_token_id = list(found.stop_ids)
            if self.use_vllm:
                own = self.vllm_generation.generation_kwargs
                stops = {*own.get("stop_token_ids", []), *found.stop_ids}
                self.vllm_generation.generation_kwargs = {**own, "stop_token_ids": sorted(stops)}
            else:
                self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        return found

    def _write_with_a_cache(self) -> None:
        """Let Transformers keep keys and values, whatever the model's configuration says.

        Training with gradient checkpointing leaves `use_cache: false` in it, and each token would read all before it.
        """
        if not self.use_vllm and "use_cache" not in (self.args.generation_kwargs or {}):
            self.generation_config.use_cache = self.generation_kwargs["use_cache"] = True

    @property
    def _every_ending(self) -> list[int]:
        """Where a teacher's response is over: an ending of either model, also where the student would go on."""
        return list(dict.fromkeys((*self.eos_token_ids, *self.endings.ids)))

    def _moment(self) -> str:
        """What is being done, for a sentence."""
        if self.in_preflight:
            return PREFLIGHT
        return self._step_ahead() if self.model.training else self._evaluation()

    def _step_ahead(self) -> str:
        return f"step {self.state.global_step + 1}"

    def _evaluation(self) -> str:
        return f"the evaluation after step {self.state.global_step}"

    def _memory_for(self, work: str) -> AbstractContextManager[None]:
        """Inside, the student writes or is scored; a lack of memory is a sentence that says what to lower."""
        trained = self.model.training or self.in_preflight
        return enough_memory(work, self._moment, self.args, TRAINED_ROWS if trained else EVALUATED_ROWS)

    def _roll_out(self, inputs: list[dict[str, Any]], totals: Totals) -> list[Rollout]:
        """Teacher prefixes and student continuations for local rows, through the host's rollout."""
        self._check_reading()
        inputs = [self._as_written(row) for row in inputs]
        first_row = self._first_row(len(inputs))
        starts = self._guidance_prefixes(inputs, first_row, totals)
        self._pending_prefixes = starts
        self._turns = Turns(first_row) if self.args.addresses_sampling() else None
        self._loops = []
        self._rows, self._asked = inputs, None
        self._notes = notes = SamplerNotes(self.temperature, self.endings.as_one) if notes_suffice(self) else None
        with self._memory_for(WRITING), finite_softmax(self.state.global_step + 1, self.args.output_dir):
            host = self._generate_and_score_completions(inputs)
        if self._asked is not None:
            inputs = [with_observation(row, prompt) for row, prompt in zip(inputs, self._asked, strict=True)]
        self._pending_prefixes = self._turns = self._notes = self._rows = self._asked = None
        totals.add("rollout/engine", self._engine(), 1)
        self._drop_host_metrics()
        return read_rollouts(
            host,
            self.teachers.contexts_for(inputs, unpad(host["prompt_ids"], host["prompt_mask"])),
            [self.teachers.name_for(row) for row in inputs],
            starts,
            first_row=first_row,
            eos_ids=self.eos_token_ids,
            mask_truncated=self.args.mask_truncated_completions,
            mask_repetitive=self.args.mask_repetitive_completions,
            notes=notes,
        )

    def _as_written(self, row: Row) -> Row:
        """A row without the nulls of Arrow's structs in messages and tools: the fields that only other rows have."""
        filled = {name: row[name] for name in self._struct_columns if row.get(name)}
        return row | {name: [_without_nulls(item) for item in items] for name, items in filled.items()}

    @cached_property
    def _struct_columns(self) -> list[str]:
        """The columns of messages and tools that the data sets keep as structs, not as JSON."""
        features = [getattr(data, "features", None) or {} for data in (self.train_dataset, self.eval_dataset)]
        return [
            name
            for name in ("prompt", "teacher_prompt", "teacher_response", TOOLS)
            if any(isinstance(getattr(of.get(name), "feature", None), dict) for of in features)
        ]

    def _tokenize_prompts(self, prompts):
        """The host's, with the tools that each row brings, and without an ending that a tokenizer puts behind text."""
        self._asked = prompts
        rows = [{"prompt": prompt} for prompt in prompts] if self._rows is None else self._rows
        return self._prompts_and_fields([row | {"prompt": p} for row, p in zip(rows, prompts, strict=True)])

    def _prompt_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """Each row's prompt as the student reads it."""
        return self._prompts_and_fields(rows)[0]

    def _prompts_and_fields(self, rows: Sequence[Row]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        prompts = [row["prompt"] for row in rows]
        if isinstance(prompts[0], str):
            return text_ids(self._tokenizer, prompts), None, {}
        if self.tools or self.environment_factories is not None:
            return super()._tokenize_prompts(prompts)  # type: ignore[no-any-return]
        options = self.chat_template_kwargs
        return [message_ids(self._tokenizer, row["prompt"], tools_of(row), **options) for row in rows], None, {}

    def _check_reading(self) -> None:
        """Once, before the first rollout: do both models say of themselves what we read of them?"""
        if not self._is_read_rightly:
            check_student(self)
            check_teachers(self)
            self._is_read_rightly = True

    def _engine(self) -> float:
        """What has written the last rollouts; see the metric."""
        if self.use_vllm:
            return VLLM
        if self.args.use_transformers_continuous_batching:
            return CONTINUOUS_BATCHING
        return sum(self._loops) / len(self._loops) if self._loops else THEIR_LOOP

    def _first_row(self, count: int) -> int:
        """Number of this rank's first row among the step's rows, or among all rows of the evaluation under way."""
        if self.model.training:
            return self.accelerator.process_index * count
        before = self._evaluated_rows
        self._evaluated_rows += self.accelerator.num_processes * count
        return before + self.accelerator.process_index * count

    def _guidance_prefixes(self, inputs: list[dict[str, Any]], first_row: int, totals: Totals) -> list[list[int]]:
        """Where each local row starts; empty in evaluation, without guidance, and at the schedule's end."""
        if not self.model.training or not self.method.guided:
            return [[] for _ in inputs]
        fraction = guidance_fraction(self.method.guidance_schedule, self.state.global_step, self.state.max_steps)
        totals.add("guidance/fraction", fraction, 1)
        if fraction == 0.0:
            return [[] for _ in inputs]
        return self._prefix_stage.prefixes_for(inputs, first_row, fraction, gather_object)

    def _drawing_prefixes(self, teacher: LocalTeacher, rows: Sequence[int]) -> AbstractContextManager[None]:
        """Inside, the teacher draws one response for each row of the step by that row and the position.

        With any engine of the student's: the teacher writes with Transformers' `generate` in all of them.
        """
        if self.args.addressed_sampling is False:
            return nullcontext()
        places = [(row, 0) for row in rows]
        noise = AddressedNoise(
            seed=self.args.seed,
            step=self.state.global_step,
            stream=PREFIX_STREAM,
            places=places,
            rows_at_once=self.args.rollout_batch_size,
        )
        return decoding_through(teacher.model, noise)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        """The host's sampler, continuing from the pending teacher prefixes on a batch's first turn."""
        starts, self._pending_prefixes = self._pending_prefixes, None
        starts = starts or [[] for _ in prompt_ids]
        rest = images, multimodal_fields, num_generations, has_tool_images
        student = self.accelerator.unwrap_model(self.model_wrapped)
        if not any(starts):
            with as_asked(student), self._addressed(prompt_ids, starts):
                written, logps = super()._generate_single_turn(prompt_ids, *rest)
        else:
            longest = self.max_completion_length - min(len(start) for start in starts)
            contexts = [[*ids, *start] for ids, start in zip(prompt_ids, starts, strict=True)]
            with self._generation_budget(longest), as_asked(student), self._addressed(prompt_ids, starts):
                continuations, logps = super()._generate_single_turn(contexts, *rest)
            pairs = [
                splice(start, continuation, None if logps is None else logps[row], self.max_completion_length)
                for row, (start, continuation) in enumerate(zip(starts, continuations, strict=True))
            ]
            written = [ids for ids, _ in pairs]
            logps = None if logps is None else [values for _, values in pairs]
        if self._turns is not None:
            self._turns.record(prompt_ids, written)
        return written, logps

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """The host's own pass over its rollouts, where it goes on to compute with it; we read nothing of it."""
        if self.use_vllm and self.vllm_importance_sampling_correction:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return None, None, None

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """The host's rewards; a reward function that fails stops the run in a sentence."""
        functions = list(zip(self.reward_func_names, self.reward_funcs, strict=True))
        with rewards_given(functions, self._moment(), self.args.output_dir):
            given = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._monitors_rewards:
            self._count_missing_rewards(given)
        return given.masked_fill(given.isinf(), torch.nan)  # which the host leaves out, as it does None

    def _count_missing_rewards(self, rewards_NF: Tensor) -> None:
        """A reward that is none, or no finite number, is left out of the host's sums; how many there are is told."""
        missing = ~rewards_NF.isfinite()
        self._metrics["train" if self.model.training else "eval"]["rewards/nonfinite_share"].append(
            missing.float().mean().item()
        )
        for name, count in zip(self.reward_func_names, missing.sum(0).tolist(), strict=True):
            if count and name not in self._said_of_rewards and self.is_world_process_zero():
                self._said_of_rewards.add(name)
                logger.warning(
                    "the reward function %s gave no finite number (None, NaN or infinity) for %d of %d rollouts in %s; "
                    "they are left out. Later ones are counted in the metric rewards/nonfinite_share.",
                    name,
                    count,
                    len(rewards_NF),
                    self._moment(),
                )

    def _addressed(self, prompt_ids: list[list[int]], starts: list[list[int]]) -> AbstractContextManager[None]:
        """Inside, Transformers' sampler draws by row and position; nothing changes where it does not sample."""
        if self._turns is None:
            return drawing_without_address(self.accelerator.unwrap_model(self.model_wrapped))
        places = self._turns.places(prompt_ids)
        if self.generation_config.get_generation_mode() != GenerationMode.SAMPLE:
            return nullcontext()
        if places is None:
            logger.warning(
                "The rollout was asked to go on from a context that continues no response of its batch, so the tokens "
                "of this turn come from PyTorch's generator of this rank: another split of the step, or a resumed run, "
                "may draw others."
            )
            return nullcontext()
        noise = AddressedNoise(
            seed=self.args.seed,
            step=self.state.global_step,
            stream=SAMPLING_STREAM if self.model.training else EVALUATION_SAMPLING_STREAM,
            places=[(row, position + len(start)) for (row, position), start in zip(places, starts, strict=True)],
            synced_gpus=self._weights_are_sharded_here(),
            rows_at_once=self.args.rollout_batch_size,
            notes=self._notes,
            used=self._loops,
        )
        return decoding_through(self.accelerator.unwrap_model(self.model_wrapped), noise)

    def _weights_are_sharded_here(self) -> bool:
        """Does the student's forward pass need every rank, while it writes rollouts?"""
        if self.accelerator.num_processes == 1:
            return False
        plugin: Any = getattr(self.accelerator.state, "deepspeed_plugin", None)
        zero3 = self.is_deepspeed_enabled and plugin.zero_stage == 3
        return bool(self.is_fsdp_enabled or (zero3 and not self.args.ds3_gather_for_generation))

    @contextmanager
    def _generation_budget(self, max_new_tokens: int) -> Iterator[None]:
        """Let Transformers' sampler write at most so many tokens; vLLM's writes on and is cut by `splice`."""
        if self.use_vllm:
            yield
            return
        before = self.generation_config.max_new_tokens
        self.generation_config.max_new_tokens = self.generation_kwargs["max_new_tokens"] = max_new_tokens
        try:
            yield
        finally:
            self.generation_config.max_new_tokens = self.generation_kwargs["max_new_tokens"] = before

    def _drop_host_metrics(self) -> None:
        """Remove the host's numbers that mean something else here: its lengths count the teacher's prefix."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in list(metrics):
            rewards = name.startswith("reward") or name == "frac_reward_zero_std"
            if name.startswith("completions/") or (rewards and not self._monitors_rewards):
                del metrics[name]
