"""Out of memory where the student writes, is scored or learns: a sentence that says what to lower."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import OutOfMemory, TrainingStopped
from .faults import in_a_line, is_out_of_memory, kept_phrase, resume_phrase

WRITING, SCORING, LEARNING = "while the student wrote", "while the student was scored", ""
"""What was being done; where it is not known, the update needs most."""

TRAINED_ROWS, EVALUATED_ROWS = "per_device_train_batch_size", "per_device_eval_batch_size"
"""The fields that say how many rows pass through the student at once; a preflight has training's."""


@contextmanager
def enough_memory(work: str, moment: Callable[[], str], args: Any, rows: str) -> Iterator[None]:
    """Stop in a sentence where memory runs out.

    Args:
        work: one of `WRITING`, `SCORING`, `LEARNING`.
        moment: tells, when asked, such as `step 3`.
        args: the run's configuration.
        rows: `TRAINED_ROWS` or `EVALUATED_ROWS`.

    Raises:
        OutOfMemory: with what was being done, what is kept, and what to lower.
    """
    try:
        yield
    except TrainingStopped:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        when = f"{moment()} {work}".strip()
        raise OutOfMemory(
            f"memory ran out in {when} ({in_a_line(error)}); {kept_phrase(moment(), args.output_dir)}. "
            f"{_advice(work, args, rows)} and {resume_phrase(args.output_dir, moment())}."
        ) from error


def _advice(work: str, args: Any, rows: str) -> str:
    if work == WRITING:
        return f"Lower {_field_of_writing(args, rows)} or max_completion_length"
    fewer = f"{rows} (and raise gradient_accumulation_steps)" if rows == TRAINED_ROWS else rows
    advice = f"Lower {fewer} or max_completion_length"
    if work == SCORING or args.gradient_checkpointing:
        return advice
    return f"{advice}, or set gradient_checkpointing: true,"


def _field_of_writing(args: Any, rows: str) -> str:
    """The field that says how much the rollouts take."""
    if args.use_vllm:
        return "vllm_gpu_memory_utilization"
    return "rollout_batch_size" if args.addresses_sampling() else rows
