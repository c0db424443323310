"""Mathematics: sums of several numbers, worked column by column with the carry.

    prompt    add the columns. ones: 7 2 6. tens: 4 8 1. hundreds: 3 5 9.
    response  ones: 7 + 6 = 13, 2 + 13 = 15
              tens: 1 + 8 = 9, 9 + 1 = 10, 10 + 4 = 14
              hundreds: 3 + 1 = 4, 5 + 4 = 9, 9 + 9 = 18
              total: 1 8 4 5

The digits of a column and the carry may be added in any order, and the sides of each addition exchanged: many responses
are right, so a good teacher is not certain. A slip in one column spoils all that follow.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tropd.proving_ground.problems import Domain, Grade, short

COLUMNS = ("ones", "tens", "hundreds", "thousands", "myriads")
"""Names of the columns, in the order in which a response visits them."""
LEVELS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((2, 2), (3, 2)),
    2: ((2, 3), (3, 3)),
    3: ((3, 4), (4, 3)),
    4: ((4, 4), (5, 3)),
    5: ((5, 4), (5, 5), (4, 5)),
}
"""Difficulty dial: level → (numbers to add, columns), one of them drawn."""

_PROMPT = re.compile(r"add the columns\.((?: [a-z]+:(?: [0-9])+\.)+)")
_STEP = re.compile(r"(0|[1-9][0-9]{0,5}) \+ (0|[1-9][0-9]{0,5}) = (0|[1-9][0-9]{0,5})")


@dataclass(frozen=True)
class ColumnSum:
    """Digits of each column, the ones first; every column has one digit of each number."""

    columns: tuple[tuple[int, ...], ...]

    @property
    def prompt(self) -> str:
        """Text given to a model."""
        said = [f"{name}: {' '.join(map(str, column))}." for name, column in zip(COLUMNS, self.columns, strict=False)]
        return " ".join(["add the columns.", *said]) + "\n"

    @property
    def key(self) -> str:
        """Each column's digits in order of size: exchanging them makes no new problem."""
        return "; ".join(" ".join(map(str, sorted(column))) for column in self.columns)

    @property
    def total(self) -> int:
        return sum(sum(column) * 10**power for power, column in enumerate(self.columns))

    @property
    def addends(self) -> list[tuple[str, list[int]]]:
        """Column names with what is to be added there: the digits, and the carry unless it is 0."""
        columns, carry = [], 0
        for name, digits in zip(COLUMNS, self.columns, strict=False):
            columns.append((name, [*digits, carry] if carry else [*digits]))
            carry = (sum(digits) + carry) // 10
        return columns


def draw(rng: random.Random, level: int) -> ColumnSum:
    numbers, columns = rng.choice(LEVELS[level])
    return ColumnSum(tuple(tuple(rng.randrange(10) for _ in range(numbers)) for _ in range(columns)))


def parse(prompt: str) -> ColumnSum:
    """Problem behind a prompt, the inverse of `ColumnSum.prompt`."""
    match = _PROMPT.fullmatch(prompt.strip())
    found = re.findall(r"([a-z]+):((?: [0-9])+)\.", match[1]) if match else []
    columns = tuple(tuple(map(int, digits.split())) for _, digits in found)
    named = tuple(name for name, _ in found) == COLUMNS[: len(found)]
    if not found or not named or len(set(map(len, columns))) != 1 or len(columns[0]) < 2:
        raise ValueError(
            f"prompt is {short(prompt)}; it holds no columns to add. "
            "Write for example 'add the columns. ones: 7 2. tens: 4 8.'."
        )
    return ColumnSum(columns)


def answer(problem: ColumnSum) -> str:
    return str(problem.total)


def solve(problem: ColumnSum, rng: random.Random) -> str:
    """One right response, its orders drawn from `rng`."""
    lines = [f"{name}: {_additions(rng.sample(each, len(each)), rng)}" for name, each in problem.addends]
    return "\n".join([*lines, _ending(problem)])


def judge(problem: ColumnSum, response: str) -> Grade:
    """Whether every column and the total are right, and if not, what is wrong first."""
    lines = response.strip(" ").split("\n")
    for (name, addends), line in zip(problem.addends, lines, strict=False):  # a short response is judged below
        fault = _column_fault(name, addends, line)
        if fault:
            return Grade(False, fault)
    due = len(problem.columns)
    if len(lines) <= due:
        return Grade(False, f"The response stops before '{[*COLUMNS[:due], 'total'][len(lines)]}:'.")
    ending = "\n".join(lines[due:])
    if ending != _ending(problem):
        return Grade(False, f"The response should end in {_ending(problem)!r}, but it ends in {short(ending)}.")
    return Grade(True, "Every column and the total are right.")


def _additions(addends: list[int], rng: random.Random) -> str:
    running, steps = addends[0], []
    for addend in addends[1:]:
        left, right = rng.sample((running, addend), 2)
        running += addend
        steps.append(f"{left} + {right} = {running}")
    return ", ".join(steps)


def _column_fault(name: str, addends: list[int], line: str) -> str | None:
    label, _, work = line.partition(": ")
    if label != name:
        return f"The line of the {name} should start with '{name}: ', but it reads {short(line)}."
    left_over, running = Counter(addends), None
    for step in work.split(", "):
        match = _STEP.fullmatch(step)
        if match is None:
            return f"In the {name}, {short(step)} is not a step such as '7 + 6 = 13'."
        left, right, result = map(int, match.groups())
        if left + right != result:
            return f"In the {name}, {left} + {right} is {left + right} and not {result}."
        used = Counter((left, right))
        if running is not None:
            if running not in used:
                return f"In the {name}, the step {step!r} should continue from {running}."
            used[running] -= 1
        if used - left_over:
            strange = next(iter(used - left_over))
            return f"In the {name}, the step {step!r} adds {strange}, which is not left to add."
        left_over -= used
        running = result
    if left_over:
        return f"The {name} should add {_listed(addends)}, but {_listed(left_over.elements())} is left out."
    return None


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _ending(problem: ColumnSum) -> str:
    return f"total: {' '.join(str(problem.total))}"


MATHEMATICS = Domain("mathematics", draw, parse, answer, solve, judge)
