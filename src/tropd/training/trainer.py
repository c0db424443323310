"""`TrOPDTrainer`: on-policy distillation with regions, hosted on TRL's `GRPOTrainer`.

This file is the switchboard: the host's methods that we override, in the order of a run. The step itself is
`step.build_step`, and the loss of its micro-batches `step.learn`.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer

from ..models.hidden_states import head_rows, text_tokenizer
from ..objective.head.fused_loss import FusedLoss
from ..objective.policy_gradient import AdvantageScale
from ..teacher.per_teacher_settings import args_of, check_names, teachers_by_name
from ..teacher.served.address import are_all_served, is_served
from ..teacher.shared_base import is_own_base
from ..teacher.teacher import Teacher
from .benchmarks import BenchmarkStage, load_asked
from .checkpointing.directory_lock import only_run_in
from .checkpointing.epoch_sampler import EpochAddressedSampler
from .checkpointing.hub import Pushes, PushWhenWhole, hub_guard
from .checkpointing.interruption import TOLD_TO_END, Signals, stopping_at_signals
from .checkpointing.saving import Checkpointing
from .config import TrOPDConfig
from .distributed.ranks import Ranks
from .distributed.sharding import reads_by_length, shards_teacher
from .guards.argument_types import checks_arguments
from .guards.arguments import (
    as_text,
    check_arguments,
    check_data,
    check_enough_prompts,
    check_rows,
    check_topk,
    has_rewards,
)
from .guards.errors import RolloutsCollapsed
from .guards.faults import (
    EVALUATED_ROWS,
    LEARNING,
    PREFLIGHT,
    SCORING,
    TRAINED_ROWS,
    DataEnd,
    Reading,
    data_guard,
    engine_start_guard,
    enough_memory,
    log_guard,
    processes_alive,
)
from .guards.host_settings import field_guard, model_guard
from .guards.step_guards import CollapseGuard, StepGuards, gradient_not_finite, loss_not_finite
from .guards.versions import check_host
from .logging.callbacks import RunCallback
from .logging.collect import Totals, ended_share, loss_metrics, step_metrics
from .logging.model_card import write_card
from .logging.rollout_log import write_rollouts
from .logging.trackers import track_rollouts, without_trackers
from .records import MicroBatch, Rollout
from .rollout_stage import RolloutStage, no_reward
from .set_up import find_endings, load_teachers, prepare_student
from .step import Step, StepSetup, acceptances, build_step, learn, micro_batches

logger = logging.getLogger(__name__)


@checks_arguments
class TrOPDTrainer(GRPOTrainer):
    """Distil `teacher_model` into `model` on the student's own rollouts.

    The data set needs a `prompt` column (text or messages) and may have `teacher_response` (text, messages or token
    ids: where teacher prefixes come from; without it the teacher writes them) and `teacher_prompt` (what the teacher
    sees instead of `prompt`); with several teachers, `teacher` names each row's. Other columns are passed to the reward
    functions.

    Args:
        model: the student: a folder, a Hub name or a loaded model.
        teacher_model: the teacher, in the same forms; it must share the student's token ids. With `peft_config` it may
            be the student itself: then its base, without the adapter, is the teacher, and no second copy is loaded. Or
            the address of a server, or a list of its replicas' (docs/engines.md). Or a mapping from names to teachers:
            each row of the data then names its own in a `teacher` column.
        args: the configuration.
        train_dataset: see above.
        eval_dataset: in the same form.
        processing_class: the student's tokenizer; loaded from the model by default.
        teacher_processing_class: the teacher's tokenizer; loaded from the teacher's folder by default. For several
            teachers a mapping from their names, or one for all.
        reward_funcs: verifiable rewards, as TRL's; monitored, and mixed into the policy gradient by
            `reward_mixing_weight`.
        peft_config: an adapter for the student.
        kwargs: everything else of `trl.GRPOTrainer`: callbacks, optimizers, tools, environments, `rollout_func`.

    Raises:
        ValueError: models that do not share a vocabulary, settings that contradict each other, or a row that names no
            teacher of the run.
    """

    _tag_names = ["trl", "tropd"]  # noqa: RUF012
    _name = "TrOPD"
    _paper = {  # noqa: RUF012
        "title": "Trust Region On-Policy Distillation",
        "id": "2606.01249",
        "citation": "@article{tropd2026,\n    title  = {{Trust Region On-Policy Distillation}},\n"
        "    author = {Xing and Wang and Gao and Li and Tang},\n    year   = 2026,\n"
        "    eprint = {arXiv:2606.01249},\n}",
    }

    # The host declares these wider (None, a bare Module, a JSON string) than they are once it is built.
    args: Any
    model: Any
    max_completion_length: Any
    vllm_generation: Any
    _buffered_inputs: Any
    stops_at: tuple[int, ...]
    in_preflight = False
    has_preflight = False
    """Is the `preflight.json` in the output directory this run's?"""
    data_name = ""
    """What the prompts are called in the model card; the data set itself does not say."""
    made_from: Mapping[str, Any] | None = None
    """What `run.json` says beside the configuration: names of the student, the data, tools and environment."""

    def __init__(
        self,
        model: "str | PreTrainedModel",
        teacher_model: "str | PreTrainedModel | list[str] | Mapping[str, str | PreTrainedModel | list[str]]",
        args: TrOPDConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        reward_funcs: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        check_host()
        args = TrOPDConfig("tropd-output") if args is None else args
        check_names(teacher_model)
        model, teachers = as_text(model), {n: as_text(t) for n, t in teachers_by_name(teacher_model).items()}
        options = {"reward_funcs": reward_funcs, "peft_config": peft_config, **kwargs}
        check_arguments(args, model, teachers, {"train_dataset": train_dataset, "eval_dataset": eval_dataset}, options)
        self.method, asked = args.resolved_method(), load_asked(args)
        self.monitors_rewards = has_rewards(options)
        self.own_bases = {
            n for n, t in teachers.items() if is_own_base(model, t, peft_config, args_of(args, n, teachers))
        }
        self.teachers_elsewhere = are_all_served(teachers)
        rewards = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        read = {"model": model} | {f"reward_funcs[{place}]": reward for place, reward in enumerate(rewards)}
        with model_guard(read), field_guard(vars(args), loading="model_init_kwargs"), engine_start_guard(args):
            super().__init__(
                model,
                reward_funcs if self.monitors_rewards else no_reward,  # type: ignore[arg-type]
                args=args,
                train_dataset=train_dataset,
                eval_dataset={} if asked and eval_dataset is None else eval_dataset,
                processing_class=text_tokenizer(processing_class, model, args),
                peft_config=peft_config,
                **kwargs,
            )
        self._set_up_models(teachers, teacher_processing_class)
        self._set_up_run(asked)

    # ------------------------------------------------------------------ set-up

    def _set_up_models(self, teachers: Mapping[Any, Any], tokenizers: Any) -> None:
        """Prepare the host's student, load the teachers, and settle what the models share: ids and endings."""
        prepare_student(self, teachers)
        self._student_vocab_size = head_rows(self.model)
        self.ranks = Ranks(self.accelerator)
        read = {"teacher_model" if n is None else f"teacher_model[{n!r}]": t for n, t in teachers.items()}
        with model_guard(read), field_guard(vars(self.args), loading="teacher_model_init_kwargs"):
            self.teachers, self.teacher_tokenizers = load_teachers(self, teachers, tokenizers)
        # Token ids that every model can score.
        sizes = (teacher.vocab_size for teacher in self.teachers.by_name.values())
        self.shared_vocab_size = min(self._student_vocab_size, *sizes)
        self.endings = find_endings(self)
        check_topk(self)
        self._by_length, self._shards_teacher = reads_by_length(self), shards_teacher(self)
        # A server returns what the method needs; to log more, a larger request would be made, which it may refuse.
        lists = self.method.needs_topk or not any(map(is_served, teachers.values()))
        self._notes_topk = lists and self.args.alternatives_per_token > 0

    def _set_up_run(self, asked: Any) -> None:
        """What persists over the steps of a run: cycles of updates, rollouts, benchmarks, checkpoints, callbacks."""
        self.cycle = int(self.args.steps_per_generation * self.num_iterations)  # micro-batches of one batch of rollouts
        self._updates_each = max(1, self.cycle // self.args.gradient_accumulation_steps)
        self.rollout_stage = RolloutStage(self)
        self.benchmarks = BenchmarkStage(self, asked) if asked else None
        self.checkpointing = Checkpointing(self)
        self._tokens_learned = 0
        self._ended_before = 0.0
        self.ended_by: dict[int, int] = {}
        self._forget_what_was_begun()
        self._evaluated = Totals(self.teachers.names)
        self.stops_at, self.signals = TOLD_TO_END, Signals()
        self.pushes = Pushes()
        for callback in (DataEnd(), RunCallback(self), PushWhenWhole(self)):
            self.add_callback(callback)

    @property
    def shares_base(self) -> bool:
        """Is a teacher the base of the student's adapter?"""
        return bool(self.own_bases)

    @property
    def teacher(self) -> Teacher:
        """The teacher, where there is one."""
        return self.teachers.only

    @property
    def teacher_tokenizer(self) -> Any:
        """The tokenizer of the teacher, where there is one."""
        (tokenizer,) = self.teacher_tokenizers.values()
        return tokenizer

    def expect_endings(self, share: float) -> None:
        """Tell the guard what share of the student's rollouts ended before training, as a probe has measured it."""
        self._ended_before = max(self._ended_before, share)
        self.guard.best_ended_share = max(self.guard.best_ended_share, share)

    # ------------------------------------------------------------------ a run

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; see `transformers.Trainer.train`.

        Raises:
            ValueError: fewer prompts than a rollout batch takes, a prompt that a model cannot read, or another run in
                the output directory. A checkpoint to resume from that is missing, cut short or altered; with `True`, no
                checkpoint at all. Or data, a teacher or a tokenizer that have changed since.
            Interrupted: SIGTERM or SIGHUP stopped it; its checkpoint is on disk (`stop_at_signals`).
            RolloutsCollapsed: the guard stopped the run; its checkpoint is on disk.
            CheckpointNotWritten: the disk is full; earlier checkpoints are untouched.
            DataFailed: the data cannot be read further, or a process that loads them was lost.
            ProcessLost: another process of the run was lost.
            TrainingStopped: something else failed without which the run cannot continue; the kinds are in `errors`.
        """
        if hasattr(self.train_dataset, "__len__"):
            check_enough_prompts(len(self.train_dataset), self.args)  # type: ignore[arg-type]
        self._forget_what_was_begun()
        here = only_run_in(self.args.output_dir) if self.is_world_process_zero() else nullcontext()
        enough = enough_memory(LEARNING, lambda: f"step {self.state.global_step + 1}", self.args, TRAINED_ROWS)
        with here, enough, field_guard(vars(self.args)):
            resume_from_checkpoint = self.checkpointing.begin(resume_from_checkpoint)
            self.rollout_stage.check_prompts((self.train_dataset, self.eval_dataset))
            with stopping_at_signals(self), processes_alive(self.args.output_dir, lambda: self.state.global_step + 1):
                output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.guard.tripped:
            raise RolloutsCollapsed(self.guard.sentence(self.state.global_step, self.args.output_dir))
        return output._replace(training_loss=output.metrics["train_loss"])

    def _forget_what_was_begun(self) -> None:
        """Drop what an interrupted `train()` left: rollouts not learned from, and metrics of half a window."""
        self._step = 0
        self.stopped_by_signal = 0
        self._buffered_inputs = None
        self._metrics["train"].clear()
        self._window = Totals(self.teachers.names)
        self.advantage_scale = self.scale_before_cycle = AdvantageScale()
        self.guard = CollapseGuard(self.args.collapse_share, self.args.collapse_patience, self._ended_before)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        host = super()._init_training_state
        return self.checkpointing.place_in_data(lambda: host(*args, **kwargs))

    def _get_train_sampler(self, dataset: Any = None) -> EpochAddressedSampler:
        # The epsilon undoes rounding of the host's fractional epoch at a boundary.
        return EpochAddressedSampler(
            super()._get_train_sampler(dataset), epoch=lambda: int((self.state.epoch or 0.0) + 1e-6)
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of a step; see `transformers.Trainer`."""
        with data_guard(self.state.global_step + 1, self.args.output_dir):
            samples = super().get_batch_samples(epoch_iterator, num_batches, device)
            if isinstance(self.train_dataset, IterableDataset):
                for rows in samples[0]:
                    check_rows(rows, self.environment_factories is not None)
            return samples

    # ------------------------------------------------------------------ a step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:  # type: ignore[override]
        """One forward-backward; at the end of an optimiser step, the window's metrics."""
        output = super().training_step(model, inputs, num_items_in_batch)
        self._window.add("speed/update", self._tokens_learned, time.perf_counter() - self._update_began)
        if self._step % self.args.gradient_accumulation_steps == 0:
            for name, value in self._window.collect(self.ranks).items():
                self._metrics["train"][name].append(value)
            self._window = Totals(self.teachers.names)
        return output

    def _prepare_inputs(self, generation_batch: Any) -> MicroBatch:  # type: ignore[override]
        """One micro-batch of the step; rolls out and scores a new batch when the old one is used up."""
        if not self.model.training:
            return self._build_batch(generation_batch)[0]
        steps = self.args.steps_per_generation
        if self._step % self.cycle == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._build_batch(generation_batch)
        self._update_began = time.perf_counter()
        batch = self._buffered_inputs[self._step % steps]
        first_update = self._step % self.cycle < self.args.gradient_accumulation_steps
        return batch if first_update else replace(batch, first_update=False)

    def _build_batch(self, rows: list[dict[str, Any]]) -> list[MicroBatch]:
        """Prompts to micro-batches; everything but the student's gradient is known at the end."""
        setup = self.step_setup()
        step = build_step(setup, self.rollout_stage, rows)
        totals = Totals(self.teachers.names) if setup.is_training else self._evaluated
        step_metrics(totals, step, self.endings, self._tokenizer.eos_token_id)
        if not setup.is_training:
            return micro_batches(setup, step, rows_each=len(step.rollouts))
        metrics = totals.collect(self.ranks)
        self.scale_before_cycle = self.advantage_scale
        if setup.advantage_scale is not None and "trust/fraction" in metrics:  # absent where nothing is learned from
            metrics["trust/advantage_scale"] = setup.advantage_scale
            self.advantage_scale = self.advantage_scale.after(1 - metrics["trust/fraction"])
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        self._watch_endings(step, metrics)
        windows = self.args.steps_per_generation // self.args.gradient_accumulation_steps
        return micro_batches(setup, step, self.args.per_device_train_batch_size, windows)

    def step_setup(self) -> StepSetup:
        """What the step ahead, or a batch of the evaluation under way, is built with."""
        args, step = self.args, self.state.global_step
        rows = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        method = self.method.stage(step / max(self.state.max_steps, 1))
        scales = self.model.training and method.advantage_scale != "none"
        return StepSetup(
            student=self.model,
            teachers=self.teachers,
            method=method,
            endings=self.endings,
            step=step,
            max_steps=self.state.max_steps,
            is_training=self.model.training,
            seed=args.seed,
            temperature=self.temperature,
            pad_id=self._tokenizer.pad_token_id,
            student_vocab_size=self._student_vocab_size,
            shared_vocab_size=self.shared_vocab_size,
            device=self.accelerator.device,
            rows_per_pass=rows,
            teacher_rows_per_pass=args.teacher_batch_size or rows,
            by_length=self._by_length,
            reward_weight=args.reward_mixing_weight,
            advantage_scale=self.advantage_scale.value if scales else None,
            trusts_sampler=self.rollout_stage.trusts_sampler,
            rescores=args.rescore_rollouts,
            noted_rows=args.rollouts_per_log if self._notes_topk and self._logs_rollouts(self._updates_each) else 0,
            noted_topk=args.alternatives_per_token,
            ranks=self.ranks,
            guards=self.step_guards(),
        )

    def step_guards(self) -> StepGuards:
        """What turns a failure of the step ahead, or of the evaluation under way, into a sentence."""
        rows = TRAINED_ROWS if self.model.training or self.in_preflight else EVALUATED_ROWS
        return StepGuards(
            moment=self.moment(),
            step=self.state.global_step + 1,
            directory=self.args.output_dir,
            shards_teacher=self._shards_teacher,
            memory=partial(enough_memory, moment=self.moment, args=self.args, rows=rows),
            autocast=self.accelerator.autocast,
        )

    def acceptances(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """How far each row's teacher accepts what has been written so far; see `step.acceptances`."""
        return acceptances(self.step_setup(), rollouts)

    # ------------------------------------------------------------------ a step's rollouts: what the host calls back

    def _tokenize_prompts(self, prompts):
        return self.rollout_stage.tokenize_prompts(prompts, super()._tokenize_prompts)

    def tokenize_as_host(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Tokenise prompts as the host does, with its tools or its environment's."""
        return super()._tokenize_prompts(prompts)  # type: ignore[no-any-return]

    def _generate_single_turn(self, prompt_ids, *rest, **more):
        host = super()._generate_single_turn
        return self.rollout_stage.generate_turn(prompt_ids, lambda contexts: host(contexts, *rest, **more))

    def _tool_call_loop(self, prompts, prompt_ids, completion_ids, completions, *rest):
        loop, write = super()._tool_call_loop, super()._generate_single_turn
        return self.rollout_stage.call_tools(
            completions,
            lambda: loop(prompts, prompt_ids, completion_ids, completions, *rest),
            lambda ids: write(ids, None, {}, 1),
        )

    def _get_tool_suffix_ids(self, tool_messages):
        return self.rollout_stage.tokenize_replies(tool_messages, super()._get_tool_suffix_ids)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """The host's own pass over its rollouts, made only where the host uses it; we do not."""
        if self.use_vllm and self.vllm_importance_sampling_correction:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return None, None, None

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        host = super()._calculate_rewards
        return self.rollout_stage.give_rewards(lambda: host(inputs, prompts, completions, completion_ids_list))

    # ------------------------------------------------------------------ a step's update

    def _compute_loss(self, model: Callable, inputs: MicroBatch) -> Tensor:
        """This micro-batch's part of the step's loss."""
        logs_rollouts = self._logs_rollouts()
        terms = learn(self.step_setup(), model, inputs, every_token=logs_rollouts)
        if not math.isfinite(loss := terms.loss.item()):
            raise loss_not_finite(loss, self.state.global_step + 1, self.args.output_dir)
        self._tokens_learned = terms.student_logp.numel()
        if self.model.training:
            loss_metrics(self._window, inputs, terms)
        else:
            loss_metrics(self._evaluated, inputs, terms, 1 / self.accelerator.num_processes)
        if logs_rollouts:
            self._log_rollouts(inputs, terms)
        # Transformers would divide by the accumulation steps; TRL's `loss_is_scaled_for_ga` stops it. Data parallelism
        # averages gradients over ranks, and the counts are already global.
        return terms.loss * self.accelerator.num_processes

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The host's norm, over all ranks, before the optimiser's step; one that is not finite stops the run."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's scaler skips such a step itself, and DeepSpeed has taken its step before the norm is known.
        is_early = self.accelerator.scaler is None and not self.is_deepspeed_enabled
        if norm is not None and is_early and not math.isfinite(norm):
            raise gradient_not_finite(float(norm), self.state.global_step + 1, self.args.output_dir)
        return norm

    # ------------------------------------------------------------------ what is logged of a step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; see `transformers.Trainer.log`. The summary of a resumed run has the mean loss of all of its steps.

        It also has the metrics of the steps since the last logged one, even after an evaluation of the last step.

        Raises:
            ValueError: a value that a checkpoint's record could not hold.
        """
        try:
            json.dumps(logs)
        except TypeError as error:
            raise ValueError(f"logs has a value that is not a number or text ({error}). Give value.item().") from error
        was_evaluating = not self.model.training
        if "train_loss" in logs:
            logs["train_loss"] = self.checkpointing.mean_loss()
            self.model.train()  # TRL logs the metrics of the mode that the model is in
        super().log(logs, start_time)
        if was_evaluating:
            self.model.eval()

    def close_engine(self) -> None:
        """End vLLM, if it runs in this process, before the process group ends."""
        if self.use_vllm:
            self.vllm_generation.close()

    def _watch_endings(self, step: Step, metrics: dict[str, float]) -> None:
        """Count the ids that ended the rollouts of all ranks, and let the guard check the step."""
        local = [sum(rollout.ended_by == i for rollout in step.rollouts) for i in self.eos_token_ids]
        counts = self.ranks.sum(torch.tensor(local)).tolist()
        self.ended_by = {i: int(n) for i, n in zip(self.eos_token_ids, counts, strict=True) if n}
        self.guard.observe(
            metrics["response/collapsed_share"],
            ended_share(step.rollouts, self.endings.unheeded, self.max_completion_length, self.ranks.sum),
            metrics.get("response/unheeded_ending_share", 0.0),
            metrics["response/eos_share"],
            len(step.rollouts) * self.accelerator.num_processes,
            (step.guidance_fraction or 0.0) if metrics["guidance/prefix_length"] else 0.0,
        )

    def _logs_rollouts(self, steps: int = 1) -> bool:
        """Are the rollouts of this micro-batch logged? Those of a step's first one, every `rollout_log_steps` steps.

        Or, with `steps`, in one of so many from this one on.
        """
        every = self.args.rollout_log_steps
        return bool(
            self.model.training
            and every
            and self._step % self.args.steps_per_generation == 0
            and -self.state.global_step % every < steps
            and self.is_world_process_zero()
        )

    def _log_rollouts(self, inputs: MicroBatch, terms: FusedLoss) -> None:
        step, directory = self.state.global_step + 1, self.args.output_dir
        with log_guard("rollouts/", step, directory):
            records = write_rollouts(
                directory,
                step,
                inputs,
                terms,
                self._tokenizer,
                limit=self.args.rollouts_per_log,
                alternatives=self.args.alternatives_per_token,
            )
        track_rollouts(records, self)

    def moment(self) -> str:
        """What is being done, for a sentence."""
        if self.in_preflight:
            return PREFLIGHT
        step = self.state.global_step
        return f"step {step + 1}" if self.model.training else f"the evaluation after step {step}"

    # ------------------------------------------------------------------ an evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate; see `transformers.Trainer.evaluate`. Each evaluation draws the same gates from the start.

        The benchmarks of `eval_benchmarks` are run once in it, whether there are several data sets, one or none.
        """
        self._check_evaluated("eval_dataset", eval_dataset)
        self.rollout_stage.evaluated_rows = 0
        moment = f"the evaluation after step {self.state.global_step}"
        tracked = nullcontext() if self.is_in_train else without_trackers(self.args)
        with tracked, enough_memory(SCORING, lambda: moment, self.args, EVALUATED_ROWS):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        if several and (found := self._benchmark_metrics(metric_key_prefix)):
            self.log(dict(found))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
            metrics |= found
        return metrics  # type: ignore[no-any-return]

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Evaluate on other data without logging; see `transformers.Trainer.predict`. It returns metrics only."""
        self._check_evaluated("test_dataset", test_dataset)
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def _check_evaluated(self, argument: str, data: Any) -> None:
        known = self.eval_dataset if isinstance(self.eval_dataset, Mapping) else {}
        if isinstance(data, str) and data not in known:
            raise ValueError(
                f"{argument} is {data!r}, which is not one of the trainer's evaluation sets (they are: "
                f"{', '.join(map(repr, known)) or 'one without a name, or none'})."
            )
        if not isinstance(data, str):
            check_data(argument, data, self.teachers.by_name, self.environment_factories is not None)

    def _benchmark_metrics(self, prefix: str) -> dict[str, float]:
        if self.benchmarks is None or prefix != "eval":
            return {}
        return {f"eval_{name}": value for name, value in self.benchmarks.measure().items()}

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The batches of an evaluation; see `transformers.Trainer`."""
        loader = super().get_eval_dataloader(eval_dataset)
        return Reading(
            loader,
            lambda: data_guard(self.state.global_step, self.args.output_dir, "evaluation"),
            lambda rows: check_rows(rows, self.environment_factories is not None),
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; see `transformers.Trainer`. Means are over all tokens and rollouts, whatever the batches were.

        The host calls every metric `eval_…`; those of one set of several, and of `predict`, get their own prefix.
        """
        # Added up over all batches, so that no metric depends on how they were cut.
        self._evaluated = Totals(self.teachers.names)
        self._metrics["eval"].clear()  # of one that broke off
        output = super().evaluation_loop(*args, **kwargs)
        found = self._evaluated.collect(self.ranks)
        for name, value in found.items():
            self._metrics["eval"][name].append(value)
        parts = [value for name, value in found.items() if name.startswith("loss/")]
        metrics = output.metrics or {}
        metrics |= {name: sum(parts) for name in metrics if name.endswith("_loss") and parts}
        prefix = kwargs.get("metric_key_prefix", "eval")
        if prefix != "eval":
            for name, values in self._metrics["eval"].items():
                numbers = [value for value in values if not math.isnan(value)]
                metrics |= {f"{prefix}_{name}": sum(numbers) / len(numbers)} if numbers else {}
            self._metrics["eval"].clear()
        metrics |= self._benchmark_metrics(prefix)
        return output

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        host = super()._determine_best_metric
        return self.checkpointing.is_best(metrics, lambda: host(metrics, trial))

    # ------------------------------------------------------------------ saving

    @property
    def is_inside_cycle(self) -> bool:
        """Are there more updates to come from the current rollouts, which a checkpoint does not hold?"""
        return self._step % self.cycle != 0

    def _get_output_dir(self, trial: Any) -> str:
        return self.checkpointing.folder(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        host = super()._save_checkpoint
        self.checkpointing.save(lambda: host(model, trial), trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a folder that `from_pretrained` loads; see `transformers.Trainer`."""
        self.checkpointing.save_model(output_dir, _internal_call, super().save_model)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.checkpointing.is_writing:  # the host asks while the checkpoint is still aside
            with self.pushes.of_step(self.state.global_step, self):
                super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self.pushes.tell_failed()

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository to push to; see `transformers.Trainer`."""
        with hub_guard("push_to_hub is True, but " if self.args.push_to_hub else ""):
            super().init_hf_repo(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        host = super()._finalize_training
        return self.checkpointing.finalize(lambda: host(*args, **kwargs))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our model card; TRL's knows no teacher. Arguments have no effect, and a warning says so."""
        if args or kwargs.keys() - {"model_name"}:
            logger.warning("create_model_card takes no arguments here; edit README.md after the run.")
        if self.is_world_process_zero():
            write_card(self)
