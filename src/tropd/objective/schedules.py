"""How long the teacher's prefix is, and how it is annealed away. Plain numbers, no tensors."""

import math


def guidance_fraction(schedule: str, step: int, total_steps: int) -> float:
    """α_t in [0, 1]: `cosine` ½(1 + cos(πt/T)) (TrOPD, arXiv 2606.01249,
    off-policy guidance), `linear` 1 − t/T, `constant` 1, `none` 0.

    >>> [round(guidance_fraction("cosine", t, 4), 3) for t in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]

    Raises:
        ValueError: an unknown schedule, or no step at all.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}; a schedule needs at least one step")
    progress = min(max(step / total_steps, 0.0), 1.0)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "constant":
        return 1.0
    if schedule == "none":
        return 0.0
    raise ValueError(f"guidance_schedule is {schedule!r}; choose cosine, linear, constant or none")


def prefix_length(reading: str, fraction: float, *, response_length: int, max_length: int, min_tail: int = 1) -> int:
    """Number of teacher tokens that start a rollout.

    `cap` is min(⌊α·L_max⌋, L), the sentence as printed (TrOPD, arXiv 2606.01249, off-policy guidance); `share` is
    ⌊α·L⌋. Either way the student keeps something to write: at least `min_tail` tokens of the teacher's response (its
    EOS not counted) and of the length budget.

    Args:
        reading: `cap` or `share`.
        fraction: α_t.
        response_length: L, tokens of this prompt's teacher response *without* its EOS.
        max_length: L_max, the budget shared by prefix and continuation.
        min_tail: tokens left to the student.

    >>> prefix_length("cap", 0.5, response_length=40, max_length=100), prefix_length("share", 0.5,
    ...     response_length=40, max_length=100), prefix_length("cap", 1.0, response_length=40, max_length=100)
    (39, 20, 39)

    Raises:
        ValueError: an unknown reading, or a tail without a token.
    """
    if reading not in ("cap", "share"):
        raise ValueError(f"guidance_length is {reading!r}; choose cap or share")
    if min_tail < 1:
        raise ValueError(f"the student's tail is {min_tail}; the student must write at least one token")
    # The epsilon undoes rounding: (1 − 8/10)·10 is 1.9999999999999996 and means 2.
    scheduled = math.floor(fraction * (max_length if reading == "cap" else response_length) + 1e-9)
    return max(0, min(scheduled, response_length - min_tail, max_length - min_tail))
