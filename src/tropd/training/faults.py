"""What fails around a step, in a sentence: the teacher, the data, the log's disk, another process.

`KeyboardInterrupt` and `SystemExit` pass; everything else is kept as the cause.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback

from ..teacher.local import TeacherScores
from .checkpoints import FULL_DISK, checkpoints_in
from .errors import DataFailed, LogNotWritten, ProcessLost, TeacherFailed, TrainingStopped
from .guards import kept

logger = logging.getLogger(__name__)

LONGEST = 300


def in_a_line(error: BaseException) -> str:
    """An exception on one line; of one that another process hands over with its traceback, the last line.

    >>> in_a_line(RuntimeError("no answer\\nfrom the server"))
    'RuntimeError: no answer'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    handed_over = bool(lines) and lines[0].startswith("Caught ")
    line = lines[-1 if handed_over else 0] if lines else ""
    line = re.sub(r"^\[\S*gloo/transport\S*\] |\. This is typically caused by.*", "", line)  # a place, and guesses
    text = line if handed_over else f"{type(error).__name__}: {line}" if line else type(error).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _go_on(directory: str) -> str:
    return "go on with resume_from_checkpoint" if checkpoints_in(directory) else "start again"


# ---------------------------------------------------------------------- the teacher


@contextmanager
def teacher_asked(moment: str, directory: str) -> Iterator[None]:
    """Stop in a sentence where the teacher raises.

    Args:
        moment: such as `step 3`.
        directory: of the run.

    Raises:
        TeacherFailed: with what it raised, what is kept, and what to try.
    """
    try:
        yield
    except TrainingStopped:
        raise
    except Exception as error:
        raise TeacherFailed(
            f"the teacher failed in {moment} ({in_a_line(error)}), so nothing was learned from it; {kept(directory)}. "
            f"{_teacher_advice(error)} {_go_on(directory)}."
        ) from error


def _teacher_advice(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "Lower teacher_batch_size, or per_device_train_batch_size and max_completion_length, and"
    if isinstance(error, OSError):
        return "See that the teacher can be reached and"
    return "`tropd check` scores a few prompts with it; when it answers,"


def teacher_failed_elsewhere(moment: str, directory: str) -> TeacherFailed:
    """What a process says whose own teacher has answered."""
    return TeacherFailed(
        f"the teacher failed in {moment} on another process, which says why; nothing was learned from it, and "
        f"{kept(directory)}."
    )


def check_score_counts(scores: TeacherScores, num_tokens: int, moment: str, directory: str) -> None:
    """Refuse scores that cannot be matched with the tokens, before anything is made of them.

    Raises:
        TeacherFailed: with both counts.
    """
    asked = scores.topk_index.numel()
    counts = {
        "logp": (len(scores.logp), num_tokens, "tokens"),
        "entropy": (len(scores.entropy), num_tokens, "tokens"),
        "topk_ids": (len(scores.topk_ids), asked, "tokens of its topk_index"),
        "topk_logp": (len(scores.topk_logp), asked, "tokens of its topk_index"),
    }
    if scores.hidden is not None:
        counts["hidden"] = (len(scores.hidden), num_tokens, "tokens")
    for name, (given, wanted, of) in counts.items():
        if given != wanted:
            raise TeacherFailed(
                f"the teacher gave {given} values of {name} for the {wanted} {of} of {moment}, so nothing was learned "
                f"from them; {kept(directory)}. A teacher scores every token it is asked for (LocalTeacher.score)."
            )


# ---------------------------------------------------------------------- the data


@contextmanager
def data_read(step: int, directory: str) -> Iterator[None]:
    """Stop in a sentence where the data set, or a process that loads it, fails.

    Raises:
        DataFailed: with what was raised, what is kept, and what to try.
    """
    try:
        yield
    except TrainingStopped:
        raise
    except Exception as error:
        raise _data_failed(error, step, directory) from error


def _data_failed(error: Exception, step: int, directory: str) -> DataFailed:
    advice = (
        "It may have been killed for memory: dataloader_num_workers: 0 reads the data in the process itself; then"
        if _is_lost_worker(error)
        else "Mend the row or its source, leave the rows before it as they are, and"
    )
    return DataFailed(
        f"the training data cannot be read on at step {step} ({in_a_line(error)}), so the step was not taken; "
        f"{kept(directory)}. {advice} {_go_on(directory)}."
    )


def _is_lost_worker(error: Exception) -> bool:
    text = str(error)
    return "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text)


class DataEnd(TrainerCallback):
    """What follows where a stream of prompts holds less than the run asks for.

    The host reads a stream again from its start, and ends a run quietly when that gives nothing.
    """

    def __init__(self) -> None:
        self.first = self.before = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = state.global_step

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.before = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        gave_nothing = control.should_training_stop and state.global_step == self.before
        if not gave_nothing or state.global_step >= state.max_steps:
            return
        if state.global_step == self.first:
            raise DataFailed(
                f"the training data hold less than one rollout batch of {args.generation_batch_size} rollouts "
                f"(generation_batch_size; {args.num_generations} of a prompt), so nothing was trained. Lower "
                "per_device_train_batch_size or gradient_accumulation_steps, or give more prompts."
            )
        logger.warning(
            "The training data ended after step %d of %d (max_steps) and cannot be read again, so the run ends here; "
            "its checkpoint and its model are of this step.",
            state.global_step,
            state.max_steps,
        )
        control.should_save = args.save_strategy != "no"


# ---------------------------------------------------------------------- the log


@contextmanager
def log_written(file: str, step: int, directory: str) -> Iterator[None]:
    """Stop in a sentence where a record of the run cannot be written.

    Raises:
        LogNotWritten: with the file, the system's reason, what is kept, and what to do.
    """
    try:
        yield
    except OSError as error:
        room = "Free some space" if error.errno in FULL_DISK else "Look at the disk"
        raise LogNotWritten(
            f"{file} in {directory} cannot be written at step {step} ({error.strerror or error}); its earlier records "
            f"are whole, and {kept(directory)}. {room} and {_go_on(directory)}."
        ) from error


# ---------------------------------------------------------------------- anywhere in a step


@contextmanager
def processes_alive(directory: str, step: Callable[[], int]) -> Iterator[None]:
    """Stop in a sentence where a process that loads data, or another process of the run, dies while this one works.

    Raises:
        DataFailed: a data loader's worker was lost; PyTorch says so wherever the main process is at that time.
        ProcessLost: a collective operation failed.
    """
    try:
        yield
    except TrainingStopped:
        raise
    except RuntimeError as error:
        if _is_lost_worker(error):
            raise _data_failed(error, step(), directory) from error
        if not _is_lost_peer(error):
            raise
        raise ProcessLost(
            f"another process of the run ended or stopped answering in step {step()} ({in_a_line(error)}); what it "
            f"printed says why; {kept(directory)}. Start all processes again and {_go_on(directory)}."
        ) from error


def _is_lost_peer(error: Exception) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)
