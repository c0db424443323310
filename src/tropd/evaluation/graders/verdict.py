"""What a grader says of one response."""

from dataclasses import dataclass, field
from typing import Any

RIGHT, WRONG, NO_ANSWER, UNDECIDED = OUTCOMES = ("right", "wrong", "no_answer", "undecided")


@dataclass(frozen=True)
class Verdict:
    """A grader's word on one response; only `right` counts.

    Attributes:
        outcome: `right`; `wrong`; `no_answer`, where the response has none in the form that was asked for; `undecided`,
            where the grader reached its own limits before it knew.
        answer: what was graded, as the response has it.
        why: how a verdict other than right came about.
        details: what else a benchmark counts, such as the score of each instruction.

    >>> Verdict("right", "33").score
    1.0
    """

    outcome: str
    answer: str | None = None
    why: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.outcome in OUTCOMES, self.outcome

    @property
    def score(self) -> float:
        return float(self.outcome == RIGHT)
