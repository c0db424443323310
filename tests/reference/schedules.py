"""What changes from the first step to the last: how long the teacher's prefix is, and TV-OPD's coefficient."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

SCHEDULES = ("cosine", "linear", "constant", "none")


def prefix_share(step: int, num_steps: int, schedule: str, constant: float = 1.0) -> Fraction:
    """α_t: 1 at step 0 and 0 at the last for cosine and linear; exact wherever it is a fraction."""
    if schedule == "none":
        return Fraction(0)
    if schedule == "constant":
        return Fraction(str(constant))
    progress = min(Fraction(step, num_steps), Fraction(1))
    if schedule == "linear":
        return 1 - progress
    assert schedule == "cosine", f"schedule is {schedule!r}; expected one of {SCHEDULES}"
    # The only fractions of a half turn whose cosine is rational; elsewhere α·L is never a whole number.
    exact = {
        Fraction(0): Fraction(1),
        Fraction(1, 3): Fraction(3, 4),
        Fraction(1, 2): Fraction(1, 2),
        Fraction(2, 3): Fraction(1, 4),
        Fraction(1): Fraction(0),
    }
    if progress in exact:
        return exact[progress]
    return Fraction(0.5 * (1.0 + math.cos(math.pi * float(progress))))


def prefix_length(
    step: int,
    num_steps: int,
    *,
    response_length: int,
    max_length: int,
    schedule: str = "cosine",
    reading: str = "cap",
    constant: float = 1.0,
    ends_with_eos: bool = False,
    min_tail: int = 0,
) -> int:
    """The number of teacher tokens in front.

    cap: min(⌊α · L_max⌋, L); share: ⌊α · L⌋. The response's EOS never belongs to the prefix, and the student
    keeps at least `min_tail` tokens to write: of the response without its EOS, and of the maximum length L_max.
    """
    share = prefix_share(step, num_steps, schedule, constant)
    if reading == "cap":
        length = min(math.floor(share * max_length), response_length)
    else:
        assert reading == "share", f"reading is {reading!r}; expected 'cap' or 'share'"
        length = math.floor(share * response_length)
    without_eos = response_length - 1 if ends_with_eos else response_length
    return max(0, min(length, without_eos - min_tail, max_length - min_tail))


def total_variation_scales(measured: Sequence[float], epsilon: float = 0.0) -> list[float]:
    """c of each batch, from the total variations of those before it: the running mean written out as a weighted sum."""
    found = [1.0]
    for k in range(1, len(measured)):
        weights = 0.05 * 0.95 ** np.arange(k - 1, -1, -1.0)
        weights[0] = 0.95 ** (k - 1)
        ratio = (weights @ np.array(measured[:k]) + epsilon) / (measured[0] + epsilon)
        found.append(float(np.clip(np.sqrt(ratio), 0.1, 1.0)))
    return found
