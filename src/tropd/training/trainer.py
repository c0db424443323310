"""`TrOPDTrainer`: on-policy distillation with regions, hosted on TRL's `GRPOTrainer`.

The flow of one step: prompts → teacher prefix → rollout (TRL) → student and teacher scores → regions → per-token loss
→ reduction by global counts → update (Transformers) → metrics.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from ..modeling import expose_hidden_states, freeze_what_text_does_not_reach, head_rows, text_tokenizer
from ..objective.fused import FusedLoss, fused_loss
from ..rollout.addressed import Turns
from ..rollout.notes import SamplerNotes
from ..teacher.local import LocalTeacher
from .batch import MicroBatch, pack_for_student
from .batch_stage import BuildsBatches, Evaluation
from .by_teacher import args_of, check_names, check_settings, named
from .callbacks import CollapseGuard, RunDirectoryCallback, UpdatesArrive
from .checks import (
    check_arguments,
    check_enough_prompts,
    check_host_model,
    check_padding,
    check_teacher_apart,
    check_teacher_column,
    has_rewards,
)
from .config import TrOPDConfig
from .directory_lock import only_run_in
from .errors import RolloutsCollapsed
from .faults import DataEnd, log_written
from .guards import check_gradient_norm, check_loss
from .host import check_installed_host, no_reward
from .host_settings import named_by_field, settle_checkpointing
from .hub import PushWhenWhole
from .metrics import Totals
from .model_card import write_card
from .monitoring import log_ratio_quantiles, loss_metrics
from .out_of_memory import EVALUATED_ROWS, LEARNING, SCORING, TRAINED_ROWS, enough_memory
from .own_base import is_own_base
from .ranks import Ranks
from .reading_check import silence
from .rollout_log import write_rollouts
from .sampler import EpochAddressedSampler
from .saving import SaveBetweenCycles
from .sharding import keep_outputs_exact, reads_by_length
from .teachers import load_teachers

logger = logging.getLogger(__name__)


class TrOPDTrainer(BuildsBatches):
    """Distil `teacher_model` into `model` on the student's own rollouts.

    The data set needs a `prompt` column (text or messages) and may have `teacher_response` (text, messages or token
    ids: where teacher prefixes come from; without it the teacher writes them) and `teacher_prompt` (what the teacher
    sees instead of `prompt`); with several teachers, `teacher` names each row's. Other columns are handed to the reward
    functions.

    Args:
        model: the student: a folder, a Hub name or a loaded model.
        teacher_model: the teacher, likewise; it must share the student's token ids. With `peft_config` it may be the
            student itself: then its base, without the adapter, is the teacher, and no second copy is loaded. Or a
            mapping from names to teachers: each row of the data then names its own in a `teacher` column.
        args: the configuration.
        train_dataset: see above.
        eval_dataset: likewise.
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
    chat_template_kwargs: Any
    max_completion_length: Any
    num_generations: Any
    _buffered_inputs: Any

    def __init__(
        self,
        model: "str | PreTrainedModel",
        teacher_model: "str | PreTrainedModel | Mapping[str, str | PreTrainedModel]",
        args: TrOPDConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        reward_funcs: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        check_installed_host()
        args = args or TrOPDConfig("tropd-output")
        self.method = args.resolved_method()
        options = {"reward_funcs": reward_funcs, "peft_config": peft_config, **kwargs}
        check_names(teacher_model)
        teachers = named(teacher_model)
        check_settings(args, teachers)
        check_arguments(args, model, teachers, train_dataset, options)
        check_teacher_column(train_dataset, teachers, "the training data")
        check_teacher_column(eval_dataset, teachers, "the evaluation data")
        self._monitors_rewards = has_rewards(options)
        self.own_bases = {
            name
            for name, teacher in teachers.items()
            if is_own_base(model, teacher, peft_config, args_of(args, name, teachers))
        }
        with named_by_field(vars(args), loading="model_init_kwargs"):
            super().__init__(
                model,
                reward_funcs if self._monitors_rewards else no_reward,  # type: ignore[arg-type]
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=text_tokenizer(processing_class, model, args),
                peft_config=peft_config,
                **kwargs,
            )
        check_host_model(self)
        freeze_what_text_does_not_reach(self.model)
        check_padding(self)
        check_teacher_apart(self, teachers)
        self._settle_checkpointing()
        keep_outputs_exact(self.accelerator)
        if args.disable_dropout:
            silence(self.model)
        # Truncated rollouts are left out by us: the host would blank them before they can be measured.
        self.mask_truncated_completions = False
        expose_hidden_states(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        self._student_vocab_size = head_rows(self.model)
        self.ranks = Ranks(self.accelerator)
        with named_by_field(vars(args), loading="teacher_model_init_kwargs"):
            self.teachers, self.teacher_tokenizers = load_teachers(self, teachers, teacher_processing_class)
        self.endings = self._find_endings()
        self._write_with_a_cache()
        self._prefix_stage = self._make_prefix_stage()
        self._pending_prefixes: list[list[int]] | None = None
        self._turns: Turns | None = None
        self._notes: SamplerNotes | None = None
        self._loops: list[float] = []
        self._said_of_rewards: set[str] = set()
        self._tokens_learned = 0
        self._ended_before = 0.0
        self.ended_by: dict[int, int] = {}
        self._forget_what_was_begun()
        self._evaluated_rows = 0
        self._evaluated = Evaluation(Totals(self.teachers.names))
        self.stopped_by_signal = 0
        self.add_callback(DataEnd())
        self.add_callback(SaveBetweenCycles(self))
        self.add_callback(RunDirectoryCallback(self))
        self.add_callback(PushWhenWhole(self))
        self.add_callback(UpdatesArrive(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see `transformers.Trainer.train`.

        Raises:
            ValueError: fewer prompts than a rollout batch takes, a checkpoint that is not whole, or another run in the
                output directory.
            RolloutsCollapsed: the guard stopped the run; its checkpoint is on disk.
            TrainingStopped: something failed that the run cannot go on without; its kinds are in `errors`.
        """
        if hasattr(self.train_dataset, "__len__"):
            check_enough_prompts(len(self.train_dataset), self.args)  # type: ignore[arg-type]
        self._forget_what_was_begun()
        here = only_run_in(self.args.output_dir) if self.is_world_process_zero() else nullcontext()
        enough = enough_memory(LEARNING, self._step_ahead, self.args, TRAINED_ROWS)
        with here, enough, named_by_field(vars(self.args)):
            output = super().train(*args, **kwargs)
        if self.guard.tripped:
            raise RolloutsCollapsed(self.guard.sentence(self.state.global_step, self.args.output_dir))
        return output

    def _forget_what_was_begun(self) -> None:
        """Leave nothing of a `train()` that broke off: rollouts not learned from, and metrics of half a window."""
        self._step = 0
        self._buffered_inputs = None
        self._metrics["train"].clear()
        self._window = Totals(self.teachers.names)
        self._build_seconds = 0.0
        self.guard = CollapseGuard(self.args.collapse_share, self.args.collapse_patience, self._ended_before)

    def expect_endings(self, share: float) -> None:
        """Tell the guard the share of the student's rollouts that end before training, as a probe has seen it."""
        self._ended_before = max(self._ended_before, share)
        self.guard.best_ended_share = max(self.guard.best_ended_share, share)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; see `transformers.Trainer.evaluate`. Each evaluation draws the same gates from the start."""
        self._evaluated_rows = 0
        with enough_memory(SCORING, self._evaluation, self.args, EVALUATED_ROWS):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; see `transformers.Trainer`. Means are over all tokens and rollouts, whatever the batches were."""
        self._evaluated = Evaluation(Totals(self.teachers.names))
        output = super().evaluation_loop(*args, **kwargs)
        found = self._evaluated.totals.collect(self.ranks.sum)
        ratios = torch.cat([torch.empty(0, device=self.accelerator.device), *self._evaluated.log_ratios])
        for name, value in (found | log_ratio_quantiles(ratios, self.ranks.gather_ragged)).items():
            self._metrics["eval"][name].append(value)
        parts = [value for name, value in found.items() if name.startswith("loss/")]
        metrics = output.metrics or {}
        metrics |= {name: sum(parts) for name in metrics if name.endswith("_loss") and parts}
        return output

    # ------------------------------------------------------------------ set-up

    @property
    def shares_base(self) -> bool:
        """Is a teacher the base of the student's adapter?"""
        return bool(self.own_bases)

    @property
    def teacher(self) -> LocalTeacher:
        """The teacher, where there is one."""
        return self.teachers.only

    @property
    def teacher_tokenizer(self) -> Any:
        """The tokenizer of the teacher, where there is one."""
        (tokenizer,) = self.teacher_tokenizers.values()
        return tokenizer

    def _settle_checkpointing(self) -> None:
        student = self.model.get_base_model() if is_peft_model(self.model) else self.model
        # That somebody wrote `True` where it is the default cannot be told here; the command line can.
        asked = {name: getattr(self.args, name, None) for name in ("gradient_checkpointing_kwargs",)}
        note = settle_checkpointing(self.args, student, asked)
        if note is not None:
            logger.warning(note)

    def _get_train_sampler(self, dataset: Any = None) -> EpochAddressedSampler:
        # The epsilon undoes rounding of the host's fractional epoch at a boundary.
        return EpochAddressedSampler(
            super()._get_train_sampler(dataset), epoch=lambda: int((self.state.epoch or 0.0) + 1e-6)
        )

    # ------------------------------------------------------------------ building a step

    def _prepare_inputs(self, generation_batch: Any) -> MicroBatch:  # type: ignore[override]
        """One micro-batch of the step; rolls out and scores a new batch when the old one is used up."""
        if not self.model.training:
            return self._build_batch(generation_batch, windows=1)[0]
        steps = self.args.steps_per_generation
        if self._step % self._cycle == 0 or self._buffered_inputs is None:
            windows = steps // self.args.gradient_accumulation_steps
            started = time.perf_counter()
            self._buffered_inputs = self._build_batch(generation_batch, windows)
            self._build_seconds = time.perf_counter() - started
        batch = self._buffered_inputs[self._step % steps]
        first_update = self._step % self._cycle < self.args.gradient_accumulation_steps
        return batch if first_update else replace(batch, first_update=False)

    # ------------------------------------------------------------------ loss

    def _compute_loss(self, model: Callable, inputs: MicroBatch) -> Tensor:
        """This micro-batch's part of the step's loss."""
        packed = pack_for_student(
            inputs.rollouts,
            self._tokenizer.pad_token_id,
            self.accelerator.device,
            by_length=reads_by_length(self),
        )
        logs_rollouts = self._logs_rollouts()
        with self.accelerator.autocast():
            terms = model(
                input_ids=packed.input_ids,
                attention_mask=packed.attention_mask,
                on_hidden=lambda hidden, head: fused_loss(
                    packed.states(hidden),
                    head.at_temperature(self.temperature, self.endings.as_one),
                    packed.token_ids,
                    inputs.method,
                    inputs.signals,
                    inputs.counts,
                    inputs.direct,
                    every_token=logs_rollouts,
                ),
            )
        check_loss(terms.loss.item(), self.state.global_step + 1, self.args.output_dir)
        self._tokens_learned = terms.student_logp.numel()
        if self.model.training:
            loss_metrics(self._window, inputs, terms)
        else:
            loss_metrics(self._evaluated.totals, inputs, terms, 1 / self.accelerator.num_processes)
        if logs_rollouts:
            self._log_rollouts(inputs, terms)
        # Data parallelism averages gradients over ranks; the counts are already global.
        return terms.loss * self.accelerator.num_processes

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:  # type: ignore[override]
        """One forward-backward; at the end of an optimiser step, the window's metrics."""
        started = time.perf_counter()
        output = super().training_step(model, inputs, num_items_in_batch)
        seconds = time.perf_counter() - started - self._build_seconds
        self._window.add_speed("speed/update", self._tokens_learned, seconds)
        self._build_seconds = 0.0
        if self._step % self.args.gradient_accumulation_steps == 0:
            self._record_window()
        return output

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The host's norm, over all ranks, before the optimiser's step; one that is not finite stops the run."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's scaler skips such a step itself, and DeepSpeed has taken its step before the norm is known.
        if norm is not None and self.accelerator.scaler is None and not self.is_deepspeed_enabled:
            check_gradient_norm(float(norm), self.state.global_step + 1, self.args.output_dir)
        return norm

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Our card in the place of the host's, which knows no teacher."""
        if self.is_world_process_zero():
            write_card(self)

    def _record_window(self) -> None:
        """Log what the losses added up since the last call: over an optimiser step."""
        self._record(self._window.collect(self.ranks.sum))
        self._window = Totals(self.teachers.names)

    def _logs_rollouts(self) -> bool:
        """Are the rollouts of this micro-batch written down? Those of a step's first one, every so many steps."""
        every = self.args.rollout_log_steps
        return bool(
            self.model.training
            and every
            and self._step % self.args.steps_per_generation == 0
            and self.state.global_step % every == 0
            and self.is_world_process_zero()
        )

    def _log_rollouts(self, inputs: MicroBatch, terms: FusedLoss) -> None:
        step, directory = self.state.global_step + 1, self.args.output_dir
        with log_written("rollouts/", step, directory):
            write_rollouts(
                directory,
                step,
                inputs,
                terms.losses,
                terms.student_logp,
                self._tokenizer,
                limit=self.args.rollouts_per_log,
            )

    # ------------------------------------------------------------------ metrics

    def _record(self, metrics: dict[str, float]) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
