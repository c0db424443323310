"""Saving and resuming in the trainer: checkpoints whole or not at all, and everything that a later step reads."""

import json
import logging
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOTrainer

from .checkpoints import ASIDE, check_checkpoint, checkpoints_in, clear_aside, publish, room_on_disk, steps_of
from .ending_files import save_ending
from .faults import Reading, data_read, processes_alive
from .fingerprints import check_unchanged
from .hub import hub_asked
from .reading_check import check_weights
from .run_directory import write_whole
from .sharding import whole_weights
from .stream import place_in_stream

logger = logging.getLogger(__name__)

STATE = "tropd_state.json"
"""What Transformers' checkpoint does not hold: metrics of an unfinished logging window, and the collapse guard."""


class WholeCheckpoints(GRPOTrainer):
    """`GRPOTrainer` whose checkpoints are visible only when they are whole, and are checked before they are loaded."""

    args: Any
    guard: Any
    ended_by: dict[int, int]
    resumed_from: str | None = None
    _writing = False
    _began_at = 0
    _summed_before = 0
    """Steps before this `train()` call whose losses are part of its `_total_loss_scalar`."""

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see `transformers.Trainer.train`.

        Raises:
            ValueError: the checkpoint to resume from is missing, cut short or altered; the sentence offers another.
                With `True`, there is none in the output directory. Or data, teacher or tokenizer are others by now.
            CheckpointNotWritten: the disk is full; earlier checkpoints are untouched.
            DataFailed: the data cannot be read on, or a process that loads them was lost.
            ProcessLost: another process of the run was lost.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_checkpoint()
        if resume_from_checkpoint and self.accelerator.is_main_process:
            check_checkpoint(resume_from_checkpoint)
            check_unchanged(self, str(resume_from_checkpoint))
        self.resumed_from = resume_from_checkpoint or None
        self._check_steps_left()
        self._summed_before = 0
        with processes_alive(self.args.output_dir, lambda: self.state.global_step + 1):
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; see `transformers.Trainer.log`. The summary of a resumed run has the mean loss of all of its steps."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self._steps_summed, 1)
        super().log(logs, start_time)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of a step; see `transformers.Trainer`."""
        with data_read(self.state.global_step + 1, self.args.output_dir):
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The batches of an evaluation; see `transformers.Trainer`."""
        loader = super().get_eval_dataloader(eval_dataset)
        return Reading(loader, lambda: data_read(self.state.global_step, self.args.output_dir, "evaluation"))

    def _last_checkpoint(self) -> str:
        found = checkpoints_in(self.args.output_dir)
        if not found:
            raise ValueError(
                "resume_from_checkpoint is True, but there is no checkpoint in output_dir "
                f"{str(self.args.output_dir)!r}. Leave it out to start anew."
            )
        return str(found[-1])

    def _check_steps_left(self) -> None:
        """The host would take one step more than asked for."""
        if self.resumed_from is None or self.args.max_steps < 1:
            return
        done = steps_of(self.resumed_from)
        if done >= self.args.max_steps:
            raise ValueError(
                f"max_steps is {self.args.max_steps}, and checkpoint {self.resumed_from} is of step {done}: the run is "
                "complete. Raise max_steps to go on."
            )

    def _get_output_dir(self, trial: Any) -> str:
        directory = super()._get_output_dir(trial)
        return os.path.join(directory, ASIDE) if self._writing else directory

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The host's checkpoint, written aside and published."""
        check_weights(self, self.state.global_step)
        directory, name = self._get_output_dir(trial), f"checkpoint-{self.state.global_step}"
        with room_on_disk(directory):
            if self.args.should_save:
                clear_aside(directory)
            self.accelerator.wait_for_everyone()
            self._writing = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._writing = False
            self._note_best(directory)
            if self.args.should_save:
                self.state.save_to_json(str(Path(directory) / ASIDE / name / TRAINER_STATE_NAME))
                write_whole(Path(directory) / ASIDE / name / STATE, json.dumps(self._pending_state()) + "\n")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(directory, name, self.args.checkpoint_digests)
                self._remove_old(directory)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(os.path.join(directory, name))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A folder that `from_pretrained` loads, also where FSDP's checkpoints hold each process's part alone."""
        aside = output_dir is not None and ASIDE in Path(output_dir).parts
        in_a_checkpoint = _internal_call and output_dir is not None
        with nullcontext() if in_a_checkpoint else whole_weights(self.accelerator):
            super().save_model(output_dir, _internal_call=_internal_call or aside)  # what is aside is not pushed
        if self.args.should_save:
            save_ending(self, output_dir or self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writing:  # the host asks while the checkpoint is still aside
            super()._push_from_checkpoint(checkpoint_folder)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository to push to; see `transformers.Trainer`."""
        with hub_asked():
            super().init_hf_repo(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Is the model that was evaluated the best so far?

        One that is to be the final model gets a checkpoint here and now, also between two saves or inside a generation
        cycle: there is no other way back to it. What else asked for a checkpoint (a signal, the guard) still gets it,
        though under `save_strategy: best` the host would take the answer for the last word.
        """
        name = self.args.metric_for_best_model
        if name is not None and f"eval_{name.removeprefix('eval_')}" not in metrics:
            raise ValueError(
                f"metric_for_best_model is {name!r}, which this evaluation has not measured (it has: "
                f"{', '.join(metrics)}). Choose one of these, such as loss."
            )
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best or self.control.should_save

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """The end of a training; see `transformers.Trainer`.

        With `save_total_limit: 1` the host leaves the best checkpoint alone. A run that was stopped goes on from its
        last one.
        """
        limit, stopped = self.args.save_total_limit, self.state.global_step < self.state.max_steps
        self.args.save_total_limit = None if stopped else limit
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _note_best(self, directory: str) -> None:
        """The best checkpoint's place, which the host looks up where this one was written; `None`: it was never saved.

        A run that goes on in another folder may have left it in the old one.
        """
        best, before = self.state.best_global_step, self.state.best_model_checkpoint
        name = f"checkpoint-{best}"
        folder = os.path.join(directory, name)
        if best and (best == self.state.global_step or os.path.isdir(folder)):
            self.state.best_model_checkpoint = folder
        elif before is not None and (Path(before).name != name or not os.path.isdir(before)):
            self.state.best_model_checkpoint = None

    def _remove_old(self, directory: str) -> None:
        """All but the latest `save_total_limit` checkpoints and the best; one that goes is invisible first."""
        limit = self.args.save_total_limit
        if not limit or limit < 1:
            return
        best = self.state.best_model_checkpoint
        for folder in checkpoints_in(directory)[:-limit]:
            if best is None or folder.absolute() != Path(best).absolute():
                aside = Path(directory) / ASIDE
                aside.mkdir(exist_ok=True)
                shutil.rmtree(folder.rename(aside / folder.name))
        clear_aside(directory)

    # ------------------------------------------------------------------ what a later step reads

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        """Where the data go on; the host takes it that a stream has not been read more than once."""
        place = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.resumed_from is None or hasattr(self.train_dataset, "__len__") or self.args.ignore_data_skip:
            return place
        return place_in_stream(self.resumed_from, self.args.gradient_accumulation_steps)

    def _pending_state(self) -> dict[str, Any]:
        return {
            "metrics": self._metrics["train"],
            "loss": float(self._tr_loss),
            "last_logged": self._globalstep_last_logged,
            "total_loss": self._total_loss_scalar,
            "steps_summed": self._steps_summed,
            "ended_by": self.ended_by,
            "guard": {
                "steps_in_a_row": self.guard.steps_in_a_row,
                "best_ended_share": self.guard.best_ended_share,
            },
        }

    @property
    def _steps_summed(self) -> int:
        return self._summed_before + self.state.global_step - self._began_at

    def restore_pending(self) -> None:
        """Put back what `_pending_state` told, when training begins from a checkpoint that has it."""
        self._began_at = self.state.global_step
        if self.resumed_from is None:
            return
        self._find_best()
        if not self.args.ignore_data_skip:
            # A checkpoint of a stop inside a cycle: the cycle's end, and those after it, stay where they were.
            self._step = self.state.global_step * self.args.gradient_accumulation_steps % self._cycle
        if not (path := Path(self.resumed_from) / STATE).is_file():
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        for name, values in state["metrics"].items():
            self._metrics["train"][name] = list(values)
        self._tr_loss = torch.tensor(state["loss"], device=self.args.device)
        self._globalstep_last_logged = state["last_logged"]
        self._total_loss_scalar = state.get("total_loss", 0.0)
        self._summed_before = state.get("steps_summed", 0)
        self.ended_by = {int(token_id): count for token_id, count in state.get("ended_by", {}).items()}
        self.guard.steps_in_a_row = state["guard"]["steps_in_a_row"]
        self.guard.best_ended_share = state["guard"]["best_ended_share"]

    def _find_best(self) -> None:
        """The best model so far, of a run that goes on; its folder may have moved.

        Raises:
            ValueError: its checkpoint is gone, so that it could not be the final one.
        """
        best = self.state.best_global_step
        for directory in (self.args.output_dir, os.path.dirname(str(self.resumed_from))):
            if self.state.best_model_checkpoint is None:
                folder = os.path.join(directory, f"checkpoint-{best}")
                self.state.best_model_checkpoint = folder if os.path.isdir(folder) else None
        if self.args.load_best_model_at_end and best and self.state.best_model_checkpoint is None:
            raise ValueError(
                f"load_best_model_at_end is True, but checkpoint-{best}, the best of this run so far, is not beside "
                f"{self.resumed_from}. Put it back, or set load_best_model_at_end: false."
            )

    @property
    def inside_cycle(self) -> bool:
        """Are there updates to come from the rollouts at hand? A checkpoint does not hold those."""
        return self._step % self._cycle != 0

    @property
    def _cycle(self) -> int:
        """Micro-batches that are learned from one batch of rollouts."""
        return self.args.steps_per_generation * self.num_iterations


class SaveBetweenCycles(TrainerCallback):
    """Puts a checkpoint that falls inside a generation cycle off to the cycle's end, where resuming changes nothing."""

    def __init__(self, trainer: WholeCheckpoints):
        self.trainer = trainer
        self.waiting = False

    def on_step_end(self, args, state, control, **kwargs):
        wanted = control.should_save or self.waiting
        last = control.should_training_stop or state.global_step >= state.max_steps
        control.should_save = wanted and (last or not self.trainer.inside_cycle)
        self.waiting = wanted and not control.should_save

    def on_epoch_end(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            logger.warning(
                "load_best_model_at_end is True, but no evaluation found a best model (eval_delay %s), so the final "
                "model is that of the last step, %d.",
                args.eval_delay,
                state.global_step,
            )
