"""A problem of a benchmark, ready to be asked and graded."""

from dataclasses import dataclass

from ..graders.code import Tests
from ..graders.instructions import InstructionTests
from ..graders.reward import RewardTest


@dataclass(frozen=True)
class Number:
    """A mathematical answer, in a box."""

    gold: str  # as LaTeX or a number
    hashes: bool = False  # `#### 18` is an answer as well


@dataclass(frozen=True)
class Letter:
    """The letter of the right choice, and the number of choices."""

    gold: str
    choices: int = 4


Check = Number | Letter | Tests | InstructionTests | RewardTest


@dataclass(frozen=True)
class Problem:
    """What is asked, and what is known of the answer.

    >>> Problem("1", "What is 1 + 1?", Number("2")).check.gold
    '2'
    """

    id: str
    prompt: str
    check: Check
    group: str = ""
