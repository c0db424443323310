"""Messages that refuse data: every bad row with its place and a shortened value."""

from collections.abc import Sequence
from typing import NamedTuple

SHOWN = 10
"""At most this many bad rows are shown; the others are counted."""


class BadRow(NamedTuple):
    """A row that cannot be used: `file:line`, and what is wrong with it."""

    place: str
    why: str


def refusal(bad: Sequence[BadRow], total: int, advice: str) -> ValueError:
    """One error for all bad rows.

    >>> print(refusal([BadRow("a.jsonl:3", "prompt is empty ('')")], 7, "Remove it."))
    1 of 7 rows cannot be used:
      a.jsonl:3: prompt is empty ('')
    Remove it.
    """
    lines = [f"{len(bad):,} of {total:,} rows cannot be used:"]
    lines += [f"  {place}: {why}" for place, why in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  … and {len(bad) - SHOWN:,} more")
    return ValueError("\n".join([*lines, advice]))
