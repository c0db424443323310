"""What happens around a run: its description and metrics on disk, the final model."""

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
from ..guards.faults import log_written
from ..guards.reading import check_weights
from ..load_teachers import model_names
from .model_card import step_of_model
from .run_directory import drop_after_step, write_run_description

logger = logging.getLogger(__name__)


class RunDirectoryCallback(TrainerCallback):
    """Keeps the run directory, and stops a run that has collapsed, or in which a process received a signal.

    Args:
        trainer: the `TrOPDTrainer` that it serves.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with log_written("run.json or metrics.jsonl", state.global_step, args.output_dir):
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
                )
                drop_after_step(self._metrics_file(args), state.global_step)
            clear_aside(args.output_dir)
            Path(args.output_dir, FINAL).unlink(missing_ok=True)  # what lies there is no longer this run's end
        self.trainer.checkpointing.restore_pending()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            numbers = {key: value for key, value in logs.items() if _is_finite_number(value)}
            with log_written("metrics.jsonl", state.global_step, args.output_dir):
                append_jsonl(self._metrics_file(args), [{"step": state.global_step, **numbers}])

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.guard.tripped:
            control.should_save = control.should_training_stop = True
            logger.error(self.trainer.guard.sentence(state.global_step, args.output_dir))
        if args.stop_at_signals:
            received = int(self.trainer.ranks.max(torch.tensor([self.trainer.signals.received]))[0])
            if received:
                self.trainer.stopped_by_signal = received
                control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        if args.save_final_model and not self.trainer.stopped_by_signal:
            check_weights(self.trainer, state.global_step, self.trainer.checkpointing.odd_buffers)
            with room_on_disk(args.output_dir):
                self.trainer.save_model(str(Path(args.output_dir) / ASIDE / "model"))
                self.trainer.accelerator.wait_for_everyone()
                if args.should_save:
                    publish_model(args.output_dir, "model", step_of_model(args, state))
            with log_written("README.md", state.global_step, args.output_dir):
                self.trainer.create_model_card()

    @staticmethod
    def _metrics_file(args) -> Path:
        return Path(args.output_dir) / "metrics.jsonl"


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
