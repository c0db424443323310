"""The rollouts of a step: teacher prefixes and student continuations, through the host's own rollout.

`roll_out` calls TRL's `_generate_and_score_completions`. That calls back into the trainer, which passes the calls on
to the methods here, in this order:

    tokenize_prompts                    once
    generate_turn                       each turn: TRL calls `model.generate`, which decodes by `AddressedNoise.decode`
    call_tools, tokenize_replies        with tools: TRL's loop runs them and asks for the next turn
    give_rewards                        once

Then `records.read_rollouts` reads what TRL returns. What the calls need to know of the batch is in the record `_Batch`,
which exists for the time of TRL's call: TRL has no argument that could carry it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from torch import Tensor
from transformers.generation import GenerationMode

from ..messages import TOOLS, struct_columns, without_nulls
from ..models.files import context_length, steady_length
from ..models.hidden_states import rotates_by_length
from ..models.sampling import as_asked
from ..objective.methods import Method
from ..objective.schedules import prefix_length
from ..rollout.engine.loop import SamplerNotes, unpad
from ..rollout.engine.noise import (
    EVALUATION_SAMPLING_STREAM,
    SAMPLING_STREAM,
    THEIR_LOOP,
    AddressedNoise,
    Place,
    decoding_through,
    drawing_without_address,
)
from ..rollout.engine.slots import KeptStates
from ..rollout.guidance import check_response_ids, response_ids
from ..rollout.replies import PlainReplies
from ..rollout.turns import Turns
from ..teacher.context import Row, message_ids, text_ids, tools_of, with_observation
from ..teacher.names import rows_by_name, teacher_phrase
from .distributed.sharding import shards_teacher, student_is_sharded_while_writing
from .distributed.tool_loop import RanksInStep
from .guards.faults import WRITING, engine_guard, reward_guard
from .guards.reading import check_student, check_teachers
from .guards.step_guards import Reader, doubtful_rows, finite_softmax
from .records import Prefix, Rollout, read_rollouts
from .turn_guidance import TurnGuidance, check_pattern, write_by_teacher

logger = logging.getLogger(__name__)

VLLM, CONTINUOUS_BATCHING = 2.0, 3.0
"""Engines of their own, as the metric rollout/engine has them."""


@dataclass
class _Batch:
    """One batch while the host rolls it out."""

    rows: Sequence[Row]  # as the data have them
    first_row: int  # number of the first of them in the whole step
    starts: list[list[int]] | None  # teacher prefixes that the first turn continues; `None` once it has
    # the row and position at which a turn's contexts continue; `None` where there is one turn, of all rows
    turns: Turns | None
    notes: SamplerNotes | None  # what the sampler knows of its tokens; `None` where nobody reads it
    guidance: TurnGuidance | None = None  # which turns are the teacher's, where there are several; `None` where none is
    engines: list[float] = field(default_factory=list)  # which decoding loop has written, turn by turn
    # as the host has tokenised them, an environment's observations included; `None` where there is one turn
    prompts: Sequence[Any] | None = None
    # what the student knows of the rows between their turns; `None` where there is one turn
    kept: KeptStates | None = None


class RolloutStage:
    """Rolls out the rows of a batch, in training, in evaluation and in a preflight, for a built `TrOPDTrainer`."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.evaluated_rows = 0
        self._batch: _Batch | None = None
        self._is_read_rightly = False
        self._warned_of_rewards: set[str] = set()
        student = trainer.model.get_base_model() if is_peft_model(trainer.model) else trainer.model
        self._student_reader = Reader("the student", context_length(student.config), steady_length(student.config))
        self._teacher_readers = {name: self._reader_of(name) for name in trainer.teachers.by_name}
        self.trusts_sampler, self._is_addressed = notes_suffice(trainer), trainer.args.addresses_sampling()
        self._weights_are_sharded = student_is_sharded_while_writing(trainer)
        self._ranks_in_step = RanksInStep(trainer)
        check_pattern(trainer)
        # A teacher's response ends at an ending of either model, even where the student would continue.
        self._every_ending = list(dict.fromkeys((*trainer.eos_token_ids, *trainer.endings.ids)))

    # ------------------------------------------------------------------ called by a step

    def begin(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """This rank's rows as they were written, and the first one's number among all ranks' rows.

        In an evaluation it is the number among all of its rows.

        Once, before the first rollout: check that the log-probabilities computed from hidden states and head are those
        of each model's own forward pass.
        """
        if not self._is_read_rightly:
            check_student(self.trainer)
            check_teachers(self.trainer)
            self._is_read_rightly = True
        structs = self._struct_columns
        # Arrow fills its structs with nulls: the fields that only other rows have.
        written = [row | {name: without_nulls(row[name]) for name in structs if row.get(name)} for row in rows]
        accelerator, before = self.trainer.accelerator, 0
        if not self.trainer.model.training:  # rows of an evaluation are counted over its batches
            before = self.evaluated_rows
            self.evaluated_rows += accelerator.num_processes * len(rows)
        return written, int(before + accelerator.process_index * len(rows))

    def find_prefixes(self, rows: Sequence[Row], first_row: int, fraction: float, method: Method) -> list[Prefix]:
        """Where each row starts: the first tokens of its teacher's response, as many as the schedule allows.

        All rollouts of a prompt start alike. They may be on two ranks; the one with the first finds the prefix.
        Rollouts of a prompt are side by side in `rows`; `fraction` is α of the schedule.
        """
        trainer, each = self.trainer, self.trainer.num_generations
        numbers = range(first_row, first_row + len(rows))
        firsts = [i for i, number in enumerate(numbers) if number % each == 0]
        responses = self._teacher_responses([rows[i] for i in firsts], [numbers[i] for i in firsts], fraction, method)
        budget = {"max_length": trainer.max_completion_length, "min_tail": trainer.args.guidance_min_tail}
        found = []
        for i, ids in zip(firsts, responses, strict=True):
            length = prefix_length(method.guidance_length, fraction, response_length=len(ids), **budget)
            prefix = Prefix(ids[:length], is_endless=len(ids) >= trainer.max_completion_length)
            found.append((numbers[i] // each, prefix))
        of_prompt = dict(gather_object(found))
        return [of_prompt[number // each] for number in numbers]

    def guide_turns(self, rows: Sequence[Row], first_row: int, fraction: float, method: Method) -> TurnGuidance:
        """The same for rows whose turns are guided one by one, each when it is due."""
        return TurnGuidance(self.trainer, rows, first_row, fraction, method, self._every_ending)

    def roll_out(
        self,
        rows: Sequence[Row],
        first_row: int,
        prefixes: Sequence[Prefix],
        guidance: TurnGuidance | None = None,
    ) -> list[Rollout]:
        """The student's continuations of `prefixes`, through the host; turns as `guidance` has them."""
        trainer = self.trainer
        notes = SamplerNotes(trainer.temperature, trainer.endings.as_one)
        turns = Turns(first_row) if self.has_turns else None
        kept = KeptStates() if turns else None
        starts = [prefix.ids for prefix in prefixes]
        self._batch = batch = _Batch(rows, first_row, starts, turns, notes, guidance, kept=kept)
        guards = trainer.step_guards()
        try:
            with guards.memory(WRITING), finite_softmax(guards.step, guards.directory):
                host = trainer._generate_and_score_completions(rows)
        finally:
            self._batch = None
        if batch.prompts is not None:
            rows = [with_observation(row, prompt) for row, prompt in zip(rows, batch.prompts, strict=True)]
        if trainer.use_vllm or trainer.args.use_transformers_continuous_batching:
            engine = VLLM if trainer.use_vllm else CONTINUOUS_BATCHING
        else:
            engine = sum(batch.engines) / len(batch.engines) if batch.engines else THEIR_LOOP
        metrics = trainer._metrics["train" if trainer.model.training else "eval"]
        # The host's lengths count the teacher's prefix, and its rewards may be `no_reward`.
        for metric in list(metrics):
            rewards = metric.startswith("reward") or metric == "frac_reward_zero_std"
            if metric.startswith("completions/") or (rewards and not trainer.monitors_rewards):
                del metrics[metric]
        prompt_ids = unpad(host["prompt_ids"], host["prompt_mask"])
        contexts = trainer.teachers.contexts_for(rows, prompt_ids)
        names = [trainer.teachers.name_for(row) for row in rows]
        for name in dict.fromkeys(names):
            mine = [context for context, other in zip(contexts, names, strict=True) if other == name]
            self._teacher_readers[name].check(mine, trainer.max_completion_length)
        return read_rollouts(
            host,
            prompt_ids,
            contexts,
            names,
            prefixes,
            first_row=first_row,
            engine=engine,
            eos_ids=trainer.eos_token_ids,
            mask_truncated=trainer.args.mask_truncated_completions,
            mask_repetitive=trainer.args.mask_repetitive_completions,
            notes=notes,
            turns=turns,
            stale=[guidance.is_stale(row) for row in range(len(rows))] if guidance else None,
        )

    # ------------------------------------------------------------------ called back by the host

    def tokenize_prompts(self, prompts: Sequence[Any], host: Callable) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """The prompts' ids, with the tools that each row brings, without an ending that a tokenizer appends to text."""
        rows: Sequence[Row] = [{}] * len(prompts)
        if self._batch is not None:
            rows = self._batch.rows
            if self.has_turns:
                # Copies: the host's tool loop appends calls and replies, no part of a prompt, to these very lists.
                self._batch.prompts = [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        found = self._tokenize_rows([row | {"prompt": p} for row, p in zip(rows, prompts, strict=True)], host)
        self._student_reader.check(found[0], self.trainer.max_completion_length)
        return found

    def generate_turn(self, prompt_ids: list[list[int]], host: Callable) -> tuple[list[list[int]], Any]:
        """The host's sampler, continuing from the teacher prefixes on a batch's first turn.

        `host` maps contexts to what is written after them and the sampler's log-probabilities.
        """
        batch = self._batch or _Batch((), 0, None, None, None)
        if batch.turns is not None and batch.turns.messages is not None:
            self._ranks_in_step.begin_turn()
        # Row and position at which each context continues; `None` where one has none.
        starts, batch.starts = batch.starts or [[] for _ in prompt_ids], None
        places = [(batch.first_row + row, 0) for row in range(len(prompt_ids))] if batch.rows else None
        if batch.turns is not None:
            places = batch.turns.places(prompt_ids)
            if places is None and self._is_addressed:
                logger.warning(
                    "The rollout was asked to continue a context that belongs to no response of its batch, so the "
                    "tokens of this turn come from a generator of this rank: another split of the step, or a resumed "
                    "run, may draw others."
                )
        if batch.guidance is not None and batch.turns is not None and places is not None:
            return self._guided_turn(batch, batch.guidance, batch.turns, prompt_ids, places, host)
        written, logps = self._continue(batch, prompt_ids, starts, places, host)
        if batch.turns is not None:
            batch.turns.record(prompt_ids, written)
        return written, logps

    def _guided_turn(
        self,
        batch: _Batch,
        guidance: TurnGuidance,
        turns: Turns,
        prompt_ids: list[list[int]],
        places: list[Place],
        host: Callable,
    ) -> tuple[list[list[int]], Any]:
        """A turn that the teacher writes or begins in some rows, and the student continues or writes in the others."""
        if turns.messages is None:
            guidance.begin(batch.prompts or (), prompt_ids)
        starts = guidance.starts(turns, prompt_ids, places)
        mine = [i for i, start in enumerate(starts) if not start.is_whole]
        written, logps = [start.ids for start in starts], None
        if mine:
            begun, where = [starts[i].ids for i in mine], [places[i] for i in mine]
            texts, logps = self._continue(batch, [prompt_ids[i] for i in mine], begun, where, host)
            written = _put(texts, mine, written)
        elif self._ranks_in_step.is_needed:
            self._ranks_in_step.write_idly(lambda contexts: self._write_idly(contexts, host))
        if self.trainer.use_vllm:
            logps = _put(logps or [], mine, [[None] * len(start.ids) for start in starts])
        turns.record(prompt_ids, written, [len(start.ids) for start in starts])
        return written, logps

    def _continue(
        self,
        batch: _Batch,
        prompt_ids: list[list[int]],
        starts: list[list[int]],
        places: list[Place] | None,
        host: Callable,
    ) -> tuple[list[list[int]], Any]:
        """`starts`, and what the student writes after them."""
        student = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        budget = self.trainer.max_completion_length
        contexts = [[*ids, *start] for ids, start in zip(prompt_ids, starts, strict=True)]
        if places is not None:
            places = [(row, position + len(start)) for (row, position), start in zip(places, starts, strict=True)]
        if self.trainer.use_vllm:
            with self._asking_vllm(places, budget, starts):
                written, logps = host(contexts)
        else:
            longest = budget - min(map(len, starts), default=0)
            with (
                self._generation_budget(longest) if any(starts) else nullcontext(),
                as_asked(student),
                self._addressed(batch, student, places),
            ):
                written, logps = host(contexts)
        if any(starts):
            written = [[*start, *ids][:budget] for start, ids in zip(starts, written, strict=True)]
            if logps is not None:  # the sampler has no numbers for what it did not draw
                told = zip(starts, logps, strict=True)
                logps = [[*[None] * len(start), *values][:budget] for start, values in told]
        return written, logps

    def call_tools(self, messages: Sequence[list[Any]], host: Callable[[], Any], write: Callable) -> Any:
        """The host's tool loop, whose further turns come back to `generate_turn`.

        It appends to `messages`, those after each row's prompt; `write`, the host's sampler, continues contexts.
        """
        if self._batch is not None and self._batch.turns is not None:
            self._batch.turns.follow(messages)
        replies = self._plain_replies
        replies.count = replies.num_cut = 0
        found = host()
        self._ranks_in_step.end(lambda contexts: self._write_idly(contexts, write))
        if self._batch is not None and replies.most is not None and replies.count:
            metrics = self.trainer._metrics["train" if self.trainer.model.training else "eval"]
            metrics["agent/cut_reply_share"].append(replies.num_cut / replies.count)
        return found

    def tokenize_replies(self, replies: Sequence[dict[str, Any]], host: Callable[[Any], list[int]]) -> list[int]:
        """The tokens between a call and the next turn; special tokens in a tool's reply are text."""
        return self._plain_replies.tokenize(self.trainer, replies, host)

    @cached_property
    def _plain_replies(self) -> PlainReplies:
        return PlainReplies(self.trainer._tokenizer, self.trainer.args.max_tool_result_tokens)

    def _write_idly(self, contexts: list[list[int]], write: Callable) -> None:
        """One token after a context that belongs to no row, in step with ranks that have rows."""
        batch = _Batch((), 0, None, None, None)
        student = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        with self._generation_budget(1), as_asked(student), self._addressed(batch, student, [(0, 0)]):
            write(contexts)

    def give_rewards(self, host: Callable[[], Tensor]) -> Tensor:
        """The host's rewards [B, F]; a reward function that fails stops the run in a sentence."""
        trainer = self.trainer
        functions = list(zip(trainer.reward_func_names, trainer.reward_funcs, strict=True))
        with reward_guard(functions, trainer.moment(), trainer.args.output_dir):
            rewards = host()
        if trainer.monitors_rewards:
            self._count_missing_rewards(rewards)
        return rewards.masked_fill(rewards.isinf(), torch.nan)  # which the host leaves out, as it does None

    # ------------------------------------------------------------------ rows

    @cached_property
    def has_turns(self) -> bool:
        """May a rollout have several turns, or a prompt that is made during the rollout?"""
        host = self.trainer
        return bool(host.tools or host.environment_factories is not None or host.rollout_func is not None)

    @cached_property
    def _struct_columns(self) -> set[str]:
        """The columns of messages and tools that the data sets keep as structs, not as JSON."""
        data = (self.trainer.train_dataset, self.trainer.eval_dataset)
        features = [getattr(one, "features", None) for one in data]
        structs = set().union(*(struct_columns(known.arrow_schema) for known in features if known))
        return structs & {"prompt", "teacher_prompt", "teacher_response", TOOLS}

    def _tokenize_rows(
        self, rows: Sequence[Row], host: Callable | None = None
    ) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Each row's prompt as the student reads it; `host` tokenises them where there are tools or an environment."""
        trainer, prompts = self.trainer, [row["prompt"] for row in rows]
        if isinstance(prompts[0], str):
            return text_ids(trainer._tokenizer, prompts), None, {}
        if trainer.tools or trainer.environment_factories is not None:
            return (host or trainer.tokenize_as_host)(prompts)  # type: ignore[no-any-return]
        options = trainer.chat_template_kwargs
        return [message_ids(trainer._tokenizer, row["prompt"], tools_of(row), **options) for row in rows], None, {}

    # ------------------------------------------------------------------ what fits the models' positions

    def check_prompts(self, data: Any) -> None:
        """Refuse prompts that a model cannot read before anything is trained, where the data can be read twice.

        Raises:
            ValueError: see `Reader.check`.
        """
        trainer, readers = self.trainer, (self._student_reader, *self._teacher_readers.values())
        limits = [limit for one in readers for limit in (one.positions, one.steady) if limit is not None]
        if not limits or trainer.environment_factories is not None:  # which makes its prompts while rolling out
            return
        for rows in doubtful_rows(data, min(limits) - trainer.max_completion_length):
            for kind in (str, list):
                alike = [row for row in rows if isinstance(row["prompt"], kind)]
                ids = self._tokenize_rows(alike)[0] if alike else []
                self._student_reader.check(ids, trainer.max_completion_length)
                for row, seen in zip(alike, trainer.teachers.contexts_for(alike, ids), strict=True):
                    reader = self._teacher_readers[trainer.teachers.name_for(row)]
                    reader.check([seen], trainer.max_completion_length)

    def _reader_of(self, name: Any) -> Reader:
        teacher, args = self.trainer.teachers.by_name[name], self.trainer.args
        alone = (args.teacher_batch_size or args.per_device_train_batch_size) == 1
        steady = None if teacher.model is None else steady_length(teacher.model.config, alone)
        way_out = " With teacher_batch_size: 1 a longrope teacher reads each row by itself."
        return Reader(teacher_phrase(name), teacher.context_length, steady, way_out)

    # ------------------------------------------------------------------ teacher responses

    def _teacher_responses(
        self, rows: Sequence[Row], numbers: Sequence[int], fraction: float, method: Method
    ) -> list[list[int]]:
        """Each row's teacher response as ids without EOS: the data set's, else written by its teacher now.

        `rows` are the first rollouts of the prompts, `numbers` theirs in the whole step. A response is written no
        longer than its prefix can use, at `fraction`, α of the schedule.
        """
        if not rows:
            return []
        trainer = self.trainer
        prompt_ids = [list(ids) for ids in self._tokenize_rows(rows)[0]]
        responses: list[list[int]] = [[] for _ in rows]
        for i, row in enumerate(rows):
            if row.get("teacher_response") is None:
                continue
            options = {}
            if not isinstance(row["prompt"], str):
                own = trainer.teachers.contexts[trainer.teachers.name_for(row)].student_options(row)
                options = trainer.chat_template_kwargs | own
            given = (row["teacher_response"], row["prompt"], prompt_ids[i])
            responses[i] = response_ids(*given, trainer._tokenizer, self._every_ending, **options)
            check_response_ids(responses[i], row, trainer._student_vocab_size)
        missing = [i for i, row in enumerate(rows) if row.get("teacher_response") is None]
        if missing:
            lacking = [rows[i] for i in missing], [numbers[i] for i in missing], [prompt_ids[i] for i in missing]
            for i, ids in zip(missing, self._write_responses(*lacking, fraction, method), strict=True):
                responses[i] = ids
        return responses

    def _write_responses(
        self,
        rows: Sequence[Row],
        numbers: Sequence[int],
        prompt_ids: Sequence[list[int]],
        fraction: float,
        method: Method,
    ) -> list[list[int]]:
        """What each row's teacher writes now; see `_teacher_responses`."""
        trainer = self.trainer
        if shards_teacher(trainer):
            raise ValueError(
                f"prompt {rows[0]['prompt']!r:.60} has no teacher_response, and a sharded teacher cannot "
                "write one for a single rank. Generate the responses beforehand into a teacher_response column."
            )
        longest = trainer.max_completion_length
        if method.guidance_length == "cap":
            longest = min(longest, int(fraction * longest + 1e-9) + trainer.args.guidance_min_tail)
        contexts = trainer.teachers.contexts_for(rows, prompt_ids)
        responses: list[list[int]] = [[] for _ in rows]
        for name, mine in rows_by_name([trainer.teachers.name_for(row) for row in rows]).items():
            read, places = [contexts[i] for i in mine], [(numbers[i], 0) for i in mine]
            self._teacher_readers[name].check(read, trainer.max_completion_length)
            written = write_by_teacher(trainer, name, read, places, self._every_ending, longest)
            for i, ids in zip(mine, written, strict=True):
                responses[i] = ids
        return responses

    # ------------------------------------------------------------------ draws

    def _addressed(self, batch: _Batch, student: Any, places: list[Place] | None) -> AbstractContextManager[None]:
        """Inside, Transformers' sampler draws by row and position; nothing changes where it does not sample."""
        trainer = self.trainer
        mode = trainer.generation_config.get_generation_mode()
        if not self._is_addressed or (mode == GenerationMode.GREEDY_SEARCH and places is not None):
            return drawing_without_address(student, batch.notes, places, self._weights_are_sharded)
        if places is None or mode != GenerationMode.SAMPLE:
            return nullcontext()
        noise = AddressedNoise(
            seed=trainer.args.seed,
            step=trainer.state.global_step,
            stream=SAMPLING_STREAM if trainer.model.training else EVALUATION_SAMPLING_STREAM,
            places=places,
            synced_gpus=self._weights_are_sharded,
            rows_at_once=trainer.args.rollout_batch_size,
            notes=batch.notes,
            kept=batch.kept,
            used=batch.engines,
        )
        return decoding_through(student, noise)

    @contextmanager
    def _asking_vllm(self, places: list[Place] | None, budget: int, starts: list[list[int]]) -> Iterator[None]:
        """Inside, vLLM gives each row what is left of its budget, and draws by row and position."""
        from ..rollout.engine.vllm import RowRequest, row_seed

        args, step = self.trainer.args, self.trainer.state.global_step
        stream = SAMPLING_STREAM if self.trainer.model.training else EVALUATION_SAMPLING_STREAM
        if places is None:
            rows = [RowRequest(budget - len(start), None) for start in starts]
        else:
            addressed = args.addressed_sampling is not False
            rows = [
                RowRequest(
                    max(budget - position, 1),
                    row_seed(args.seed, step, row, position, stream) if addressed else None,
                )
                for row, position in places
            ]
        with engine_guard(self.trainer.moment(), args.output_dir), self.trainer.vllm_generation.asking_by_row(rows):
            yield

    @contextmanager
    def _generation_budget(self, max_new_tokens: int) -> Iterator[None]:
        """Inside, Transformers' sampler writes at most so many tokens in every row."""
        trainer = self.trainer
        before = trainer.generation_config.max_new_tokens
        trainer.generation_config.max_new_tokens = trainer.generation_kwargs["max_new_tokens"] = max_new_tokens
        try:
            yield
        finally:
            trainer.generation_config.max_new_tokens = trainer.generation_kwargs["max_new_tokens"] = before

    # ------------------------------------------------------------------ the host's numbers

    def _count_missing_rewards(self, rewards_BF: Tensor) -> None:
        """Count rewards that are `None` or not finite, which the host's sums leave out, and warn of them."""
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


def no_reward(completions: list, **_: object) -> list[float]:
    """The reward function for a host that requires one: every completion gets 0."""
    return [0.0] * len(completions)


def notes_suffice(trainer: Any) -> bool:
    """May what the sampler records of its tokens replace a pass of the student over its rollouts?

    A model that computes in half precision, or from quantised weights, rounds its logits, and the numbers noted with
    them: in bf16 a logit of 20 by up to 0.06. The pass computes logits from the states in float32. Where the rotary
    embedding depends on the batch, both are right, of different models.
    """
    args = trainer.args
    if args.rescore_rollouts is not None or not args.addresses_sampling():
        return args.rescore_rollouts is False
    exact = all(parameter.dtype in (torch.float32, torch.float64) for parameter in trainer.model.parameters())
    return bool(exact and trainer.accelerator.mixed_precision == "no" and not rotates_by_length(trainer.model))


def _put(values: Sequence[Any], places: Sequence[int], among: Sequence[Any]) -> list[Any]:
    """A list with some entries replaced."""
    found = list(among)
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found
