"""Saving and resuming: checkpoints whole or not at all, with everything that a later step reads."""

import copy
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers.trainer import TRAINER_STATE_NAME

from ...atomic_files import write_whole
from ...models.hidden_states import replaced
from ...objective.policy_gradient import AdvantageScale
from ..distributed.sharding import whole_weights
from ..guards.reading import check_moments, check_weights, odd_buffers
from ..guards.step_guards import GUARD_STATE
from .checkpoints import ASIDE, check_checkpoint, checkpoints_in, clear_aside, publish, room_on_disk, steps_of
from .earlier_run import check_stays
from .final_model import best_of, is_missing, make_from
from .fingerprints import changed_settings, check_unchanged
from .place import check_place

logger = logging.getLogger(__name__)

STATE = "tropd_state.json"
"""What Transformers' checkpoint does not hold: metrics of an unfinished logging window, TV-OPD's running mean, and the
collapse guard."""


class Checkpointing:
    """What a trainer's saving and resuming adds to the host's. `host` is the host's own method, to be called inside.

    A checkpoint is visible only when it is whole, and is checked before it is loaded.

    Attributes:
        resumed_from: the checkpoint that the run under way began with; `None`: it began anew.
        is_writing: is the host writing a checkpoint, which is kept aside until it is whole?
        odd_buffers: those of the student that were not finite before training.
        tells_changes: warn, when a run resumes, of settings that have changed since it began?
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.resumed_from: str | None = None
        self.is_writing = False
        self.tells_changes = True
        self.odd_buffers = odd_buffers(trainer.model)
        self._began_at = 0
        self._summed_before = 0  # steps before this `train()` call whose losses are part of `_total_loss_scalar`

    # ------------------------------------------------------------------ where a run begins

    def begin(self, resume_from_checkpoint: Any) -> Any:
        """Check where a run is to resume, and what has changed since; returns the folder, or `None`.

        Raises:
            ValueError: see `TrOPDTrainer.train`.
        """
        trainer = self.trainer
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_checkpoint()
        if resume_from_checkpoint == "":
            raise ValueError("resume_from_checkpoint is ''; give True (the last one) or a folder, or remove it.")
        folder = os.fspath(resume_from_checkpoint) if resume_from_checkpoint else None
        if folder is not None and trainer.accelerator.is_main_process:
            check_checkpoint(folder)
            _check_goes_on(Path(folder))
            check_unchanged(trainer, folder)
            if self.tells_changes:
                for change in changed_settings(trainer.args, Path(folder).parent):
                    logger.warning("%s", change)
        self.resumed_from = folder
        self._check_steps_left()
        step = steps_of(folder) if folder is not None and self.goes_on_here else 0
        read = {"teacher" if n is None else f"teacher {n}": t.name for n, t in trainer.teachers.by_name.items()}
        check_stays(trainer.args.output_dir, step, {"student": trainer.model.config._name_or_path} | read)
        self._summed_before = 0
        return resume_from_checkpoint

    @property
    def goes_on_here(self) -> bool:
        """Does the current run continue in the folder of its checkpoint? If not, that folder belongs to another run."""
        if self.resumed_from is None:
            return False
        return Path(self.resumed_from).resolve().parent == Path(self.trainer.args.output_dir).resolve()

    def _last_checkpoint(self) -> str:
        found = checkpoints_in(self.trainer.args.output_dir)
        if not found:
            raise ValueError(
                "resume_from_checkpoint is True, but there is no checkpoint in output_dir "
                f"{str(self.trainer.args.output_dir)!r}. Remove it to start a new run."
            )
        return str(found[-1])

    def _check_steps_left(self) -> None:
        """Refuse a complete run: the host would take one step more than asked for."""
        max_steps = self.trainer.args.max_steps
        if self.resumed_from is None or max_steps < 1:
            return
        done = steps_of(self.resumed_from)
        if done >= max_steps:
            made = self._make_final_model()
            raise ValueError(
                f"max_steps is {max_steps}, and checkpoint {self.resumed_from} is of step {done}: the run is "
                f"complete. Raise max_steps to continue.{made}"
            )

    def _make_final_model(self) -> str:
        """Make the final model of a complete run that has lost it, as the command line does; a sentence about it."""
        args, last = self.trainer.args, Path(str(self.resumed_from))
        source, said = best_of(last) if args.load_best_model_at_end else last, ""
        if args.save_final_model and is_missing(args.output_dir, source):
            said = f" Its final model was not in {args.output_dir}; it has been made from {source}."
            if args.should_save:
                make_from(source, args.output_dir)
        self.trainer.accelerator.wait_for_everyone()  # none leaves, and ends the others, while it is made
        return said

    def place_in_data(self, host: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        """Where in the data to continue; TRL assumes that a stream has been read at most once."""
        trainer, place = self.trainer, host()
        if self.resumed_from is None or hasattr(trainer.train_dataset, "__len__") or trainer.args.ignore_data_skip:
            return place
        return place_in_stream(self.resumed_from, trainer.args.gradient_accumulation_steps)

    def restore_pending(self) -> None:
        """Restore what `_pending_state` saved, when training resumes from a checkpoint that has it."""
        trainer = self.trainer
        self._began_at = trainer.state.global_step
        if self.resumed_from is None:
            return
        self._find_best()
        if not trainer.args.ignore_data_skip:
            # A checkpoint of a stop inside a cycle: the cycle's end, and those after it, stay where they were.
            trainer._step = trainer.state.global_step * trainer.args.gradient_accumulation_steps % trainer.cycle
        if not (path := Path(self.resumed_from) / STATE).is_file():
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        for name, values in state["metrics"].items():
            trainer._metrics["train"][name] = list(values)
        trainer._tr_loss = torch.tensor(state["loss"], device=trainer.args.device)
        trainer._globalstep_last_logged = state["last_logged"]
        trainer._total_loss_scalar = state.get("total_loss", 0.0)
        self._summed_before = state.get("steps_summed", 0)
        trainer.ended_by = {int(token_id): count for token_id, count in state.get("ended_by", {}).items()}
        trainer.advantage_scale = AdvantageScale(**state.get("advantage_scale", {}))
        for name in state["guard"].keys() & GUARD_STATE:
            setattr(trainer.guard, name, state["guard"][name])

    def _pending_state(self) -> dict[str, Any]:
        trainer = self.trainer
        inside_cycle = trainer._step % trainer.cycle != 0  # what is left of it is rolled out again, and counts then
        return {
            "metrics": trainer._metrics["train"],
            "loss": float(trainer._tr_loss),
            "last_logged": trainer._globalstep_last_logged,
            "total_loss": trainer._total_loss_scalar,
            "steps_summed": self._num_summed_steps,
            "ended_by": trainer.ended_by,
            "advantage_scale": vars(trainer.scale_before_cycle if inside_cycle else trainer.advantage_scale),
            "guard": {name: getattr(trainer.guard, name) for name in GUARD_STATE},
        }

    @property
    def _num_summed_steps(self) -> int:
        return int(self._summed_before + self.trainer.state.global_step - self._began_at)

    def mean_loss(self) -> float:
        """The mean loss of all steps of the run, including those before a resume."""
        return float(self.trainer._total_loss_scalar / max(self._num_summed_steps, 1))

    # ------------------------------------------------------------------ writing

    def folder(self, host: str) -> str:
        """Where the host is to write: aside, while a checkpoint is not whole."""
        return os.path.join(host, ASIDE) if self.is_writing else host

    def save(self, host: Callable[[], None], trial: Any = None) -> None:
        """The host's checkpoint, written aside and published.

        Raises:
            CheckpointNotWritten: the disk is full; earlier checkpoints are untouched.
            NotFinite: the student's weights are ruined.
        """
        trainer, step = self.trainer, self.trainer.state.global_step
        check_weights(trainer, step, self.odd_buffers)
        check_moments(trainer, step)
        directory, name = trainer._get_output_dir(trial), f"checkpoint-{step}"
        writes, together = trainer.args.should_save, trainer.accelerator.wait_for_everyone
        with room_on_disk(directory):
            if writes:
                clear_aside(directory)
            together()
            self.is_writing = True
            try:
                host()
            finally:
                self.is_writing = False
            self._note_best(directory)
            if writes:
                trainer.state.save_to_json(str(Path(directory) / ASIDE / name / TRAINER_STATE_NAME))
                write_whole(Path(directory) / ASIDE / name / STATE, json.dumps(self._pending_state()) + "\n")
            together()
            if writes:
                publish(directory, name, trainer.args.checkpoint_digests)
                self._remove_old(directory)
            together()
        if trainer.args.push_to_hub:
            trainer._push_from_checkpoint(os.path.join(directory, name))

    def save_model(self, output_dir: str | None, is_internal: bool, host: Callable[..., None]) -> None:
        """A folder that `from_pretrained` loads, also where FSDP's checkpoints hold each process's part alone.

        Raises:
            ValueError: no folder can be there, or a name in it is taken.
        """
        trainer = self.trainer
        aside = output_dir is not None and ASIDE in Path(output_dir).parts
        if not is_internal and not aside and trainer.args.should_save:
            check_place(trainer.args.output_dir if output_dir is None else output_dir)
        in_a_checkpoint = is_internal and output_dir is not None
        with nullcontext() if in_a_checkpoint else whole_weights(trainer.accelerator):
            host(output_dir, _internal_call=is_internal or aside)  # what is aside is not pushed
        if trainer.args.should_save:
            save_ending(trainer, output_dir or trainer.args.output_dir)

    def _remove_old(self, directory: str) -> None:
        """Remove all but the latest `save_total_limit` checkpoints and the best; each is hidden, then deleted."""
        limit = self.trainer.args.save_total_limit
        if not limit or limit < 1:
            return
        best = self.trainer.state.best_model_checkpoint
        for folder in checkpoints_in(directory)[:-limit]:
            if best is None or folder.absolute() != Path(best).absolute():
                aside = Path(directory) / ASIDE
                aside.mkdir(exist_ok=True)
                shutil.rmtree(folder.rename(aside / folder.name))
        clear_aside(directory)

    # ------------------------------------------------------------------ the best model

    def is_best(self, metrics: dict[str, float], host: Callable[[], bool]) -> bool:
        """Is the model that was evaluated the best so far?

        One that may be the final model gets a checkpoint at once, even between two saves or inside a generation cycle:
        there is no other way back to it. What else asked for a checkpoint (a signal, the guard) still gets it,
        though under `save_strategy: best` the host would take the answer for the last word.
        """
        trainer, name = self.trainer, self.trainer.args.metric_for_best_model
        if name is not None and f"eval_{name.removeprefix('eval_')}" not in metrics:
            raise ValueError(
                f"metric_for_best_model is {name!r}, which this evaluation has not measured (it has: "
                f"{', '.join(metrics)}). Choose one of these, such as loss."
            )
        is_best = host()
        if is_best and trainer.args.load_best_model_at_end:
            trainer.control.should_save = True
        return bool(is_best or trainer.control.should_save)

    def finalize(self, host: Callable[[], Any]) -> Any:
        """The host's end of a training.

        With `save_total_limit: 1` the host leaves the best checkpoint alone. A run that was stopped resumes from its
        last one.
        """
        trainer = self.trainer
        limit, stopped = trainer.args.save_total_limit, trainer.state.global_step < trainer.state.max_steps
        with replaced(trainer.args, "save_total_limit", None if stopped else limit):
            return host()

    def _note_best(self, directory: str) -> None:
        """Correct the place of the best checkpoint, which the host expects beside this one; `None`: it was never saved.

        A run that resumes in another folder may have left it in the old one.
        """
        state = self.trainer.state
        best, before = state.best_global_step, state.best_model_checkpoint
        name = f"checkpoint-{best}"
        folder = os.path.join(directory, name)
        if best and (best == state.global_step or os.path.isdir(folder)):
            state.best_model_checkpoint = folder
        elif before is not None and (Path(before).name != name or not os.path.isdir(before)):
            state.best_model_checkpoint = None

    def _find_best(self) -> None:
        """Find the best model so far of a resumed run, whose folder may have moved.

        Raises:
            ValueError: its checkpoint is gone, so that it could not be the final one.
        """
        args, state = self.trainer.args, self.trainer.state
        best = state.best_global_step
        for directory in (args.output_dir, os.path.dirname(str(self.resumed_from))):
            if state.best_model_checkpoint is None:
                folder = os.path.join(directory, f"checkpoint-{best}")
                state.best_model_checkpoint = folder if os.path.isdir(folder) else None
        if args.load_best_model_at_end and best and state.best_model_checkpoint is None:
            raise ValueError(
                f"load_best_model_at_end is True, but checkpoint-{best}, the best of this run so far, is not next "
                f"to {self.resumed_from}. Put it back, or set load_best_model_at_end: false."
            )


def _check_goes_on(checkpoint: Path) -> None:
    """Refuse a checkpoint of the model alone: the host would silently continue with a new optimiser."""
    if not any(True for pattern in ("optimizer*", "global_step*") for _ in checkpoint.glob(pattern)):
        raise ValueError(
            f"resume_from_checkpoint is {checkpoint}, which holds only the model (save_only_model), and no optimiser "
            f"state to resume from. Start a new run with the checkpoint as its student: --student {checkpoint}."
        )


def place_in_stream(checkpoint: str | Path, micro_batches_a_step: int) -> tuple[int, int]:
    """Passes over the stream that a checkpoint's run had ended, and micro-batches it had read of the pass under way.

    The host begins a stream again that ends before the run, and takes it for as long as the run. Its `epoch` is passes
    + micro-batches / (max_steps · micro-batches a step), and tells better.
    """
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    passes = max(math.ceil(state["epoch"]) - 1, 0)
    return passes, round((state["epoch"] - passes) * state["max_steps"]) * micro_batches_a_step


def save_ending(trainer: Any, folder: str) -> None:
    """Let the tokenizer in `folder` name the ending that the student now writes, so that other software stops there.

    generation_config.json names every id at which rollouts stop and is saved with the model; an adapter's folder has
    none, so it is written there. The tokenizer names one: the student's own, unless most responses of the last step
    that ended did so with another.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(model):
        model.generation_config.save_pretrained(folder)
    ended_by: dict[int, int] = trainer.ended_by
    most = max(ended_by, key=ended_by.__getitem__, default=None)
    if most is None or most == trainer._tokenizer.eos_token_id or 2 * ended_by[most] <= sum(ended_by.values()):
        return
    tokenizer = copy.deepcopy(trainer.processing_class)
    getattr(tokenizer, "tokenizer", tokenizer).eos_token = trainer._tokenizer.convert_ids_to_tokens(most)
    tokenizer.save_pretrained(folder)
