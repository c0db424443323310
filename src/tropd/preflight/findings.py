"""What the preflight finds out without weights, as sentences with a level."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "refusal"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `ok`; `note`, worth knowing; `warning`, training goes on but probably not as meant; `refusal`, training
            cannot work.
        subject: what was looked at, such as `end of sequence`.
        sentence: what was found, what follows from it, and what to type.
    """

    level: Level
    subject: str
    sentence: str
