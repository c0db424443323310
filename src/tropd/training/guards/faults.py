"""What fails around a step, in a sentence: memory, the teacher, a reward, the data, the log's disk, another process.

`KeyboardInterrupt` and `SystemExit` pass; everything else is kept as the cause.
"""

import inspect
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from ..checkpointing.checkpoints import FULL_DISK, checkpoints_in, fault_of
from .errors import (
    DataFailed,
    EngineFailed,
    LogNotWritten,
    OutOfMemory,
    ProcessLost,
    RewardFailed,
    TeacherFailed,
    guard,
)

logger = logging.getLogger(__name__)

LONGEST = 300

NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")
"""Texts of errors in which memory ran out, where the exception's type does not say so."""

WRITING, SCORING, LEARNING = "while the student wrote", "while the student was scored", ""
"""What was being done; `LEARNING` where it is not known, as the update needs most."""

TRAINED_ROWS, EVALUATED_ROWS = "per_device_train_batch_size", "per_device_eval_batch_size"
"""The fields that say how many rows pass through the student at once; a preflight has training's."""

PREFLIGHT = "the preflight"
"""The moment before training, in which a few prompts are looked at."""


def in_a_line(error: BaseException) -> str:
    """An exception on one line; the last line of one that another process passed on with its traceback.

    >>> in_a_line(RuntimeError("no answer\\nfrom the server"))
    'RuntimeError: no answer'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    handed_over = bool(lines) and lines[0].startswith("Caught ")
    line = lines[-1 if handed_over else 0] if lines else ""
    line = re.sub(r"^\[\S*gloo/transport\S*\] |\. This is typically caused by.*", "", line)  # a place, and guesses
    text = line if handed_over else f"{type(error).__name__}: {line}" if line else type(error).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def is_out_of_memory(error: BaseException) -> bool:
    """Did the device, or the machine, run out of memory?"""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in NO_MEMORY)


def resume_phrase(directory: str, moment: str = "") -> str:
    """How to resume, once the fault is fixed."""
    resumed = moment != PREFLIGHT and checkpoints_in(directory)
    return "continue with resume_from_checkpoint" if resumed else "start again"


def checkpoint_phrase(directory: str) -> str:
    """The checkpoint that is left. Its digests are not compared here, which takes time; resuming compares them."""
    whole = (folder for folder in reversed(checkpoints_in(directory)) if fault_of(folder, digests=False) is None)
    last = next(whole, None)
    return f"the last checkpoint, {last}, is untouched" if last else f"{directory} has no checkpoint yet (save_steps)"


def kept_phrase(moment: str, directory: str) -> str:
    """What is kept of the run."""
    return "no step was taken" if moment == PREFLIGHT else checkpoint_phrase(directory)


# ---------------------------------------------------------------------- memory


@guard
def enough_memory(error: Exception, work: str, moment: Callable[[], str], args: Any, rows: str) -> OutOfMemory | None:
    """Stop in a sentence where memory runs out: with what was being done, what is kept, and what to lower.

    `work` is one of `WRITING`, `SCORING` and `LEARNING`, `rows` one of `TRAINED_ROWS` and `EVALUATED_ROWS`.
    """
    if not is_out_of_memory(error):
        return None
    when = f"{moment()} {work}".strip()
    return OutOfMemory(
        f"memory ran out in {when} ({in_a_line(error)}); {kept_phrase(moment(), args.output_dir)}. "
        f"{_advice(work, args, rows)} and {resume_phrase(args.output_dir, moment())}."
    )


def _advice(work: str, args: Any, rows: str) -> str:
    if work == WRITING:
        field = "rollout_batch_size" if args.addresses_sampling() else rows
        return f"Lower {'vllm_gpu_memory_utilization' if args.use_vllm else field} or max_completion_length"
    fewer = f"{rows} (and raise gradient_accumulation_steps)" if rows == TRAINED_ROWS else rows
    advice = f"Lower {fewer} or max_completion_length"
    if work == SCORING or args.gradient_checkpointing:
        return advice
    return f"{advice}, or set gradient_checkpointing: true,"


# ---------------------------------------------------------------------- the teacher


@guard
def teacher_guard(error: Exception, moment: str, directory: str) -> TeacherFailed:
    """Stop in a sentence where the teacher raises: with what, what is kept, and what to try."""
    which = next((f"the {note}" for note in getattr(error, "__notes__", ()) if note.startswith("teacher ")), "")
    return TeacherFailed(
        f"{which or 'the teacher'} failed in {moment} ({in_a_line(error)}), so nothing was learned from it; "
        f"{kept_phrase(moment, directory)}. {_teacher_advice(error)} {resume_phrase(directory, moment)}."
    )


def _teacher_advice(error: Exception) -> str:
    if is_out_of_memory(error):
        return "Lower teacher_batch_size, or per_device_train_batch_size and max_completion_length, and"
    if isinstance(error, OSError):
        return "Check that the teacher can be reached and"
    return "`tropd check` scores a few prompts with it; when it answers,"


# ---------------------------------------------------------------------- vLLM


@contextmanager
def engine_start_guard(args: Any) -> Iterator[None]:
    """Inside, the trainer is built with vLLM, where the run uses it.

    Raises:
        ValueError: vLLM, or the server, cannot be used; with what to do.
    """
    if not args.use_vllm:
        yield
        return
    from ...rollout.engine.vllm import EngineUnavailable, check_version, engines_of_ours

    check_version()
    half = {"bfloat16": args.bf16, "float16": args.fp16}
    dtype = next((name for name, used in half.items() if used), None)
    try:
        with engines_of_ours(dtype, args.vllm_request_timeout):
            yield
    except EngineUnavailable as unavailable:
        error = unavailable.__cause__ or unavailable
        where = "the vLLM server" if args.vllm_mode == "server" else "vLLM"
        raise ValueError(
            f"use_vllm is True, but {where} cannot be used ({in_a_line(error)}). docs/engines.md says how to start a "
            "server, and which releases work together; to run without vLLM, remove use_vllm."
        ) from error


@guard
def engine_guard(error: Exception, moment: str, directory: str) -> EngineFailed | None:
    """Stop in a sentence where vLLM fails while it writes, or while the student's weights are sent to it."""
    if is_out_of_memory(error):
        return None  # whoever writes says what to lower
    return EngineFailed(
        f"vLLM failed in {moment} ({in_a_line(error)}); {kept_phrase(moment, directory)}. Check that it is running, "
        f"and {resume_phrase(directory, moment)}."
    )


# ---------------------------------------------------------------------- the rewards


@guard
def reward_guard(
    error: Exception, functions: Sequence[tuple[str, Any]], moment: str, directory: str
) -> RewardFailed | None:
    """Stop in a sentence where a reward function raises, or gives what is not one number for each completion."""
    if _is_lost_worker(error) or _is_lost_peer(error):  # the host gathers the rewards of all processes
        return None
    running = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    failed = [name for name, function in functions if _code(function) in running]
    which = " or ".join(failed or [name for name, _ in functions])  # of all, where it was the host's own code
    advice = "Fix the function, or the column that it reads, and"
    if is_out_of_memory(error):
        advice = "Lower per_device_train_batch_size or max_completion_length and"
    return RewardFailed(
        f"the reward function {which} failed in {moment} ({in_a_line(error)}), so nothing was learned from it; "
        f"{kept_phrase(moment, directory)}. {advice} {resume_phrase(directory, moment)}."
    )


def _code(function: Any) -> Any:
    """What runs when a function, a model or another callable is called."""
    called = function if inspect.isroutine(function) else getattr(function, "forward", type(function).__call__)
    return getattr(inspect.unwrap(called), "__code__", None)


# ---------------------------------------------------------------------- the data


@guard
def data_guard(error: Exception, step: int, directory: str, which: str = "training") -> DataFailed | None:
    """Stop in a sentence where the data set, or a process that loads it, fails.

    `step` is the one about to be taken, or the one after which the evaluation runs.
    """
    # The host may hand out a stream's batches from one process.
    return None if _is_lost_peer(error) else _data_failure(error, step, directory, which)


def _data_failure(error: Exception, step: int, directory: str, which: str = "training") -> DataFailed:
    lost = "the step was not taken" if which == "training" else "nothing was evaluated"
    where = f"at step {step}" if which == "training" else f"after step {step}"
    advice = (
        "It may have been killed for memory: dataloader_num_workers: 0 reads the data in the process itself; then"
        if _is_lost_worker(error)
        else "Fix the row or its source, leave the rows before it as they are, and"
    )
    return DataFailed(
        f"the {which} data cannot be read further {where} ({in_a_line(error)}), so {lost}; "
        f"{checkpoint_phrase(directory)}. {advice} {resume_phrase(directory)}."
    )


@dataclass(eq=False, repr=False)
class Reading:
    """A data loader of an evaluation, whose failures are explained in sentences."""

    loader: Any  # the host's, which does everything but reading
    asking: Callable[[], AbstractContextManager[None]]  # each batch is read inside
    look: Callable[[Any], None]  # raises where a batch cannot be used

    def __iter__(self) -> Iterator[Any]:
        with self.asking():
            batches = iter(self.loader)
        while True:
            with self.asking():
                batch = next(batches, self)
                if batch is not self:
                    self.look(batch)
            if batch is self:
                return
            yield batch

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.loader, name)


def _is_lost_worker(error: Exception) -> bool:
    text = str(error)
    return "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text)


class DataEnd(TrainerCallback):
    """What happens when a stream of prompts holds fewer than the run asks for.

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


@guard
def log_guard(error: Exception, file: str, step: int, directory: str) -> LogNotWritten | None:
    """Stop in a sentence where a record of the run cannot be written."""
    if not isinstance(error, OSError):
        return None
    room = "Free some space" if error.errno in FULL_DISK else "Check the disk"
    return LogNotWritten(
        f"{file} in {directory} cannot be written at step {step} ({error.strerror or error}); its earlier records "
        f"are whole, and {checkpoint_phrase(directory)}. {room} and {resume_phrase(directory)}."
    )


# ---------------------------------------------------------------------- anywhere in a step


@guard
def processes_alive(error: Exception, directory: str, step: Callable[[], int]) -> DataFailed | ProcessLost | None:
    """Stop in a sentence where a process that loads data, or another process of the run, dies during this one's work.

    PyTorch reports a lost data-loader worker wherever the main process is at that moment.
    """
    if not isinstance(error, RuntimeError):
        return None
    if _is_lost_worker(error):
        return _data_failure(error, step(), directory)
    if not _is_lost_peer(error):
        return None
    return ProcessLost(
        f"another process of the run ended or stopped answering in step {step()} ({in_a_line(error)}); what it "
        f"printed says why; {checkpoint_phrase(directory)}. Start all processes again and {resume_phrase(directory)}."
    )


def _is_lost_peer(error: Exception) -> bool:
    raised_by_torch = getattr(torch.distributed, "DistError", ())  # a PyTorch built without distributed has none
    return isinstance(error, raised_by_torch) or "gloo/transport" in str(error)
