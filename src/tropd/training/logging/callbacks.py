"""What happens around a run and its steps: its description and metrics on disk, when it is saved, the final model."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ...atomic_files import append_jsonl
from ..checkpointing.checkpoints import ASIDE, FINAL, clear_aside, publish_model, room_on_disk
from ..checkpointing.earlier_run import set_aside, set_later_checkpoints_aside, set_run_aside
from ..checkpointing.fingerprints import write as write_fingerprints
from ..guards.faults import log_guard
from ..guards.reading import check_weights
from ..guards.updates import check_updates, sample_half_precision
from ..set_up import model_names
from .model_card import step_of_model
from .run_directory import drop_after_step, write_run_description

logger = logging.getLogger(__name__)


class RunCallback(TrainerCallback):
    """Keeps the run directory, and stops a run that has collapsed, or in which a process received a signal.

    A checkpoint that falls inside a generation cycle is postponed to the cycle's end, where resuming changes nothing.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._save_waits = False
        self._weights_before: list[torch.Tensor] = []

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with log_guard("run.json or metrics.jsonl", state.global_step, args.output_dir):
                if self.trainer.checkpointing.goes_on_here:  # how the run began stays on record
                    set_aside(args.output_dir, ("run.json",))
                    set_later_checkpoints_aside(args.output_dir, state.global_step)
                else:
                    set_run_aside(args.output_dir, ("preflight.json",) if self.trainer.has_preflight else ())
                    write_fingerprints(self.trainer)
                write_run_description(
                    args.output_dir,
                    args.to_dict(),
                    self.trainer.method,
                    model_names(self.trainer.teachers),
                    self.trainer.endings.as_dict(),
                    self.trainer.vllm_generation.describe() if self.trainer.use_vllm else None,
                    self.trainer.made_from,
                )
                drop_after_step(self._metrics_file(args), state.global_step)
            clear_aside(args.output_dir)
            Path(args.output_dir, FINAL).unlink(missing_ok=True)  # that model is not this run's final one
        self.trainer.checkpointing.restore_pending()
        self._weights_before = sample_half_precision(self.trainer.model)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            numbers = {
                key: value for key, value in logs.items() if isinstance(value, (int, float)) and math.isfinite(value)
            }
            with log_guard("metrics.jsonl", state.global_step, args.output_dir):
                append_jsonl(self._metrics_file(args), [{"step": state.global_step, **numbers}])

    def on_step_end(self, args, state, control, **kwargs):
        self._put_off_save(state, control)
        if self.trainer.guard.tripped:
            control.should_save = control.should_training_stop = True
            logger.error(self.trainer.guard.sentence(state.global_step, args.output_dir))
        if args.stop_at_signals:
            received = int(self.trainer.ranks.max(torch.tensor([self.trainer.signals.received]))[0])
            if received:
                self.trainer.stopped_by_signal = received
                control.should_save = control.should_training_stop = True
        if self._weights_before and self.trainer._get_learning_rate():  # at 0, as warm-ups begin, nothing moves yet
            check_updates(self.trainer, self._weights_before)
            self._weights_before = []

    def on_epoch_end(self, args, state, control, **kwargs):
        self._put_off_save(state, control)

    def _put_off_save(self, state, control):
        wanted = control.should_save or self._save_waits
        last = control.should_training_stop or state.global_step >= state.max_steps
        control.should_save = wanted and (last or not self.trainer.is_inside_cycle)
        self._save_waits = wanted and not control.should_save

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            logger.warning(
                "load_best_model_at_end is True, but no evaluation found a best model (eval_delay %s), so the final "
                "model is that of the last step, %d.",
                args.eval_delay,
                state.global_step,
            )
        if args.save_final_model and not self.trainer.stopped_by_signal:
            check_weights(self.trainer, state.global_step, self.trainer.checkpointing.odd_buffers)
            with room_on_disk(args.output_dir):
                self.trainer.save_model(str(Path(args.output_dir) / ASIDE / "model"))
                self.trainer.accelerator.wait_for_everyone()
                if args.should_save:
                    publish_model(args.output_dir, "model", step_of_model(args, state))
            with log_guard("README.md", state.global_step, args.output_dir):
                self.trainer.create_model_card()

    @staticmethod
    def _metrics_file(args) -> Path:
        return Path(args.output_dir) / "metrics.jsonl"
