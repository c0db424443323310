"""Out of memory where the student writes, is scored or learns: a sentence that says what to lower."""

from collections.abc import Callable
from typing import Any

from .errors import OutOfMemory, guard
from .faults import in_a_line, is_out_of_memory, kept_phrase, resume_phrase

WRITING, SCORING, LEARNING = "while the student wrote", "while the student was scored", ""
"""What was being done; where it is not known, the update needs most."""

TRAINED_ROWS, EVALUATED_ROWS = "per_device_train_batch_size", "per_device_eval_batch_size"
"""The fields that say how many rows pass through the student at once; a preflight has training's."""


@guard
def enough_memory(error: Exception, work: str, moment: Callable[[], str], args: Any, rows: str) -> OutOfMemory | None:
    """Stop in a sentence where memory runs out: with what was being done, what is kept, and what to lower.

    Args:
        error: what was raised.
        work: one of `WRITING`, `SCORING`, `LEARNING`.
        moment: tells, when asked, such as `step 3`.
        args: the run's configuration.
        rows: `TRAINED_ROWS` or `EVALUATED_ROWS`.
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
