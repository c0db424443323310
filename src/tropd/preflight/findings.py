"""What the preflight finds out without weights, as sentences with a level."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

Level = Literal["ok", "note", "warning", "refusal"]


@dataclass(frozen=True)
class Finding:
    """One check: what was found, what follows from it, and what to type.

    `note` is worth knowing; with a `warning` training continues, probably not as intended; with a `refusal` it
    cannot work.
    """

    level: Level
    subject: str
    sentence: str


ok, note, warning, refusal = (partial(Finding, level) for level in get_args(Level))
