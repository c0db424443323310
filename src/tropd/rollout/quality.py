"""Has a rollout gone wrong: cut off, endless, or repeating itself? Pure functions of token ids."""

from collections.abc import Sequence
from typing import Any

REPEAT_PERIOD = 16
"""Longest cycle, in tokens, that counts as repetition."""
REPEAT_TIMES = 8
"""How often a cycle must return at the end of a rollout to count as repetition."""
REPEAT_CALL_PERIOD, REPEAT_CALL_TIMES = 3, 4
"""The same of whole turns: how many different ones, and how often. A wrong call is often made a second time."""


def is_repetitive(token_ids: Sequence[Any], max_period: int = REPEAT_PERIOD, times: int = REPEAT_TIMES) -> bool:
    """Does the rollout end in a cycle of at most `max_period` tokens that repeats at least `times` times?

    Args:
        token_ids: or whatever else can be compared.
        max_period: longest cycle.
        times: how often it returns.

    >>> is_repetitive([5, 1, 2] + [7] * 8), is_repetitive([1, 2] * 8), is_repetitive(list(range(40)))
    (True, True, False)
    """
    for period in range(1, min(max_period, len(token_ids) // times) + 1):
        tail = token_ids[-period * times :]
        if all(tail[i] == tail[i - period] for i in range(period, len(tail))):
            return True
    return False


def repeats_calls(turns: Sequence[Sequence[int]]) -> bool:
    """Does an episode end in the same turns again and again? Such a turn calls a tool, or there were no next one.

    Args:
        turns: the tokens that the student wrote, turn by turn.

    >>> repeats_calls([[5, 2], [7, 2], [7, 2], [7, 2], [7, 2]]), repeats_calls([[7, 2], [7, 2], [7, 2], [5, 2]])
    (True, False)
    """
    return is_repetitive([tuple(turn) for turn in turns], REPEAT_CALL_PERIOD, REPEAT_CALL_TIMES)


def is_collapsed(token_ids: Sequence[int], eos_ids: Sequence[int], guided: bool = False) -> bool:
    """Nothing written before the end, or an ending that only repeats itself (one token repeated, endless cycles).

    Args:
        token_ids: what the student wrote.
        eos_ids: every id that ends a response.
        guided: it continued a teacher's prefix, after which stopping at once may be right.
    """
    written = [token for token in token_ids if token not in eos_ids]
    return is_repetitive(written) if written else not guided
