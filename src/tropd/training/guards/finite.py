"""What stops a step before it is taken: losses, gradients, softmaxes and teacher scores that are not finite."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from ..checkpointing.checkpoints import checkpoints_in, fault_of
from .errors import NotFinite


def check_loss(loss: float, step: int, directory: str) -> None:
    """Refuse to learn from a loss that is not finite.

    Raises:
        NotFinite: with the step, what is kept, and what to try.
    """
    if not math.isfinite(loss):
        ruled_out = (
            " Where the teacher rules tokens out (logits of -inf), a divergence over the whole vocabulary is infinite: "
            "then use a method without one, such as tropd, or opd."
        )
        raise NotFinite(
            f"the loss of step {step} is {loss}, so the step was not taken; {checkpoint_phrase(directory)}. Lower "
            "the learning rate, or look at the rollouts." + (ruled_out if math.isinf(loss) else "")
        )


def check_gradient_norm(norm: float, step: int, directory: str) -> None:
    """Refuse a gradient that is not finite: the optimiser would carry it into every weight."""
    if not math.isfinite(norm):
        raise NotFinite(
            f"the gradient norm of step {step} is {norm}, so the step was not taken; {checkpoint_phrase(directory)}. "
            "Lower the learning rate, or train in bf16 or float32."
        )


def check_teacher_scores(
    num_finite: float, num_tokens: float, step: int, directory: str, teacher: str = "the teacher"
) -> None:
    """Refuse a batch in which the teacher has no finite score for any student token; a few are left out and counted."""
    if num_tokens and not num_finite:
        raise NotFinite(
            f"{teacher} has no finite score for any of the {num_tokens:.0f} student tokens of step {step}, so there "
            f"is nothing to learn from; {checkpoint_phrase(directory)}. Look at the teacher's weights and precision "
            "(teacher_model_init_kwargs: {dtype: float32}); `tropd check` scores a few prompts."
        )


@contextmanager
def finite_softmax(step: int, directory: str) -> Iterator[None]:
    """Explain PyTorch's refusal to sample from a softmax that is not finite: the student's weights have broken."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise NotFinite(
            f"the student's softmax is not finite in the rollout of step {step}: its weights are broken, or the last "
            f"step was too large; {checkpoint_phrase(directory)}. Lower the learning rate, or look at the student."
        ) from error


def checkpoint_phrase(directory: str) -> str:
    """Which checkpoint there is to go back to; told at once, so that resuming is where its files are read."""
    whole = (folder for folder in reversed(checkpoints_in(directory)) if fault_of(folder, digests=False) is None)
    last = next(whole, None)
    return f"the last checkpoint, {last}, is untouched" if last else f"{directory} has no checkpoint yet (save_steps)"
