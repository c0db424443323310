"""What happens around a run: its description and metrics on disk, the collapse guard, the final model."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .checkpoints import ASIDE, FINAL, clear_aside, publish_model, room_on_disk
from .faults import log_written
from .fingerprints import write as write_fingerprints
from .reading_check import check_weights, local_part
from .run_directory import append_jsonl, drop_after_step, set_aside, write_run_description
from .teachers import model_names

logger = logging.getLogger(__name__)


class CollapseGuard:
    """Counts collapsed steps in a row.

    A step counts when its rollouts are empty or only repeat themselves, and also when they no longer end although
    most of them once did: before training, where that was looked at, or in a step, teacher prefixes and all. Rollouts
    that never ended within the budget are no collapse: the budget may be short.

    Args:
        share: a step counts when at least this share of its rollouts collapsed or no longer end.
        patience: steps in a row; `None` never trips.
        ended_before: share of the student's own rollouts that ended before training; 0 where nobody looked.
    """

    def __init__(self, share: float, patience: int | None, ended_before: float = 0.0):
        self.share, self.patience = share, patience
        self.steps_in_a_row = 0
        self.best_ended_share = ended_before
        self.unheeded_share = 0.0

    def observe(
        self,
        collapsed_share: float,
        ended_share: float | None = None,
        unheeded_share: float = 0.0,
        of_all: float | None = None,
    ) -> None:
        """Take in a step; one that says nothing of endings neither counts nor breaks a row.

        Args:
            collapsed_share: of its rollouts.
            ended_share: of those with room to end; `None` where there are none.
            unheeded_share: rollouts that wrote an ending of the teacher's and went on behind it.
            of_all: share of all its rollouts that ended; `ended_share` by default.
        """
        self.best_ended_share = max(self.best_ended_share, (ended_share if of_all is None else of_all) or 0.0)
        endless = ended_share is not None and self.best_ended_share >= 0.5 and 1 - ended_share >= self.share
        if endless or collapsed_share >= self.share:
            self.steps_in_a_row += 1
            self.unheeded_share = max(self.unheeded_share, unheeded_share)
        elif ended_share is not None:
            self.steps_in_a_row, self.unheeded_share = 0, 0.0

    @property
    def tripped(self) -> bool:
        return self.patience is not None and self.steps_in_a_row >= self.patience

    def sentence(self, step: int, directory: str) -> str:
        advice = "lower the learning rate, or start from an earlier checkpoint"
        if self.unheeded_share >= 0.5:
            advice = (
                f"up to {self.unheeded_share:.0%} of a step's rollouts wrote the teacher's ending and went on behind "
                "it, since the student stops elsewhere: train with ending one_action"
            )
        return (
            f"stopped at step {step}: in each of the last {self.steps_in_a_row} steps at least {self.share:.0%} of the "
            "rollouts were empty, only repeated themselves, or no longer ended. The checkpoint of this step is in "
            f"{directory}; {advice}. (collapse_share, collapse_patience)"
        )


class RunDirectoryCallback(TrainerCallback):
    """Keeps the run directory and stops a collapsed run; `trainer` is the `TrOPDTrainer` it serves."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with log_written("run.json or metrics.jsonl", state.global_step, args.output_dir):
                if state.global_step == 0:
                    set_aside(args.output_dir, ("run.json", "metrics.jsonl", "rollouts"))
                    write_fingerprints(self.trainer)
                else:  # how the run began stays on record
                    set_aside(args.output_dir, ("run.json",))
                write_run_description(
                    args.output_dir,
                    args.to_dict(),
                    self.trainer.method,
                    model_names(self.trainer.teachers),
                    self.trainer.endings.as_dict(),
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

    def on_train_end(self, args, state, control, **kwargs):
        if args.save_final_model and not self.trainer.stopped_by_signal:
            check_weights(self.trainer, state.global_step)
            with room_on_disk(args.output_dir):
                self.trainer.save_model(str(Path(args.output_dir) / ASIDE / "model"))
                self.trainer.accelerator.wait_for_everyone()
                if args.should_save:
                    publish_model(args.output_dir, "model", _step_of_model(args, state))
            with log_written("README.md", state.global_step, args.output_dir):
                self.trainer.create_model_card()

    @staticmethod
    def _metrics_file(args) -> Path:
        return Path(args.output_dir) / "metrics.jsonl"


def _step_of_model(args: Any, state: Any) -> int:
    """The step that the model at the end of a training is of."""
    best = args.load_best_model_at_end and state.best_model_checkpoint is not None
    return state.best_global_step if best else state.global_step


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class UpdatesArrive(TrainerCallback):
    """Warns where the first step leaves most of a half-precision student's weights as they were: it rounds away.

    Args:
        trainer: whose student is looked at, a sample of each weight.
    """

    LEAST = 0.5
    """Share of the sampled weights that must have moved."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._before: list[torch.Tensor] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = self._sampled()

    def on_step_end(self, args, state, control, **kwargs):
        before, rate = self._before, self.trainer._get_learning_rate()
        if not before or not rate:  # in a warm-up that begins at 0 nothing moves yet
            return
        self._before, after = None, self._sampled()
        moved = torch.cat([(now != then).flatten() for now, then in zip(after, before, strict=True)])
        share = moved.float().mean().item()
        if share < self.LEAST and self.trainer.is_world_process_zero():
            dtype = str(after[0].dtype).removeprefix("torch.")
            logger.warning(
                "the first step moved %.1f%% of the student's weights: they are kept in %s, in which an update of "
                "about the learning rate (%g) rounds away. Load the student in float32 (model_init_kwargs: "
                "{dtype: float32}) and compute in half precision with bf16: true, train an adapter, or raise the rate.",
                100 * share,
                dtype,
                rate,
            )

    def _sampled(self) -> list[torch.Tensor]:
        """Entries of each trainable weight in half precision, of this process's part."""
        half = (torch.float16, torch.bfloat16)
        weights = [p for p in self.trainer.model.parameters() if p.requires_grad and p.dtype in half]
        return [local_part(p).detach().flatten()[:: max(1, p.numel() // 1024)].clone() for p in weights]
