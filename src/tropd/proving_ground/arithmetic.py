"""Worked column addition: problems, their many right workings, and a grader that says what went wrong.

A problem is a sum of whole numbers of equal width. A working goes column by column from the ones, adding the
digits of a column and the carry one after another; any order within a column is right, so a good teacher is
not certain:

    prompt    347+582+916=
    working   ones:7+6=13,13+2=15;tens:8+1=9,9+1=10,10+4=14;hundreds:3+1=4,4+5=9,9+9=18;total:1845
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, get_args

Split = Literal["train", "validation", "test"]

COLUMNS = ("ones", "tens", "hundreds", "thousands")
"""Names of the columns, in the order in which a working visits them."""

LEVELS: dict[int, tuple[int, int]] = {1: (2, 2), 2: (3, 2), 3: (3, 3), 4: (4, 3), 5: (4, 4)}
"""Difficulty dial: level → (numbers, digits of each). Workings average 22, 39, 60, 87 and 117 tokens."""

DEFAULT_LEVEL = 3
"""Level on which the shipped teacher and student are trained."""

_DRAWS_WITHOUT_NEWS = 3_000


@dataclass(frozen=True)
class Problem:
    """Numbers to add up, for example `Problem((347, 582, 916))`."""

    numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse sums that column addition of equal widths cannot write."""
        widths = {len(str(number)) for number in self.numbers}
        if len(self.numbers) < 2 or len(widths) != 1 or max(widths) > len(COLUMNS) or min(self.numbers) < 1:
            raise ValueError(
                f"numbers is {self.numbers}; a problem adds two or more positive numbers of the same width, "
                f"at most {len(COLUMNS)} digits. Write for instance (347, 582, 916)."
            )

    @property
    def prompt(self) -> str:
        """Text given to a model, such as '347+582+916='."""
        return "+".join(map(str, self.numbers)) + "="

    @property
    def total(self) -> int:
        """Sum of the numbers."""
        return sum(self.numbers)

    @property
    def columns(self) -> list[tuple[str, list[int]]]:
        """Column names with their addends, the carry last, from the ones upwards."""
        columns, carry = [], 0
        for power, name in enumerate(COLUMNS[: len(str(self.numbers[0]))]):
            digits = [number // 10**power % 10 for number in self.numbers]
            addends = [*digits, carry] if carry else digits
            columns.append((name, addends))
            carry = sum(addends) // 10
        return columns


class Grade(NamedTuple):
    """Verdict on a working, for example `Grade(False, "In the tens, 1+4 is 5 and not 6.")`."""

    correct: bool
    reason: str


def split_of(problem: Problem) -> Split:
    """Split that owns a problem: a hash of its sorted numbers, so no reordering of a sum crosses splits.

    One problem in ten belongs to validation, one in ten to test. Since the split is a function of
    the problem alone, the three are disjoint by construction.
    """
    text = "+".join(map(str, sorted(problem.numbers)))
    bucket = hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def problem_stream(split: Split, seed: int | str, level: int = DEFAULT_LEVEL) -> Iterator[Problem]:
    """Endless problems of one split, the same for the same (split, seed, level); repeats are possible."""
    _check_choices(split, level)
    terms, digits = LEVELS[level]
    draw = random.Random(f"problems {seed} {split} {level}")
    while True:
        problem = Problem(tuple(draw.randrange(10 ** (digits - 1), 10**digits) for _ in range(terms)))
        if split_of(problem) == split:
            yield problem


def distinct_problems(split: Split, count: int, seed: int | str, level: int = DEFAULT_LEVEL) -> list[Problem]:
    """First `count` different problems of the stream."""
    if count < 0:
        raise ValueError(f"count is {count}; a list cannot have fewer than 0 problems. Choose 0 or more.")
    found: dict[Problem, None] = {}
    draws_without_news = 0
    for problem in islice(problem_stream(split, seed, level), None if count else 0):
        draws_without_news = draws_without_news + 1 if problem in found else 0
        found[problem] = None
        if len(found) == count:
            break
        if draws_without_news == _DRAWS_WITHOUT_NEWS:
            raise ValueError(
                f"count is {count}; the {split} split of level {level} gave only {len(found)} problems. "
                f"Choose at most {len(found)}, or a higher level."
            )
    return list(found)


def worked_answer(problem: Problem, rng: random.Random) -> str:
    """One right working, each column's addends in an order drawn from `rng`."""
    steps = [f"{name}:{_running_sums(rng.sample(each, len(each)))}" for name, each in problem.columns]
    return ";".join([*steps, f"total:{problem.total}"])


def parse_prompt(prompt: str) -> Problem:
    """Problem behind a prompt, the inverse of `Problem.prompt`."""
    numbers = prompt.removesuffix("=").split("+")
    if not prompt.endswith("=") or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"prompt is {prompt!r}; it is no sum of whole numbers. Write for example '347+582='.")
    return Problem(tuple(map(int, numbers)))


def grade(problem: Problem | str, response: str) -> Grade:
    """Whether a response is a right working of the problem (or prompt), and if not, what is wrong first."""
    problem = parse_prompt(problem) if isinstance(problem, str) else problem
    parts = response.split(";")
    for (name, addends), part in zip(problem.columns, parts, strict=False):  # a short working is judged below
        fault = _column_fault(name, addends, part)
        if fault:
            return Grade(False, fault)
    due = len(problem.columns)
    if len(parts) <= due:
        return Grade(False, f"The working stops before '{[*COLUMNS[:due], 'total'][len(parts)]}:'.")
    ending = ";".join(parts[due:])
    if ending != f"total:{problem.total}":
        return Grade(False, f"The working should end in 'total:{problem.total}', but it ends in {ending!r}.")
    return Grade(True, "Every column and the total are right.")


def _running_sums(addends: list[int]) -> str:
    running, steps = addends[0], []
    for addend in addends[1:]:
        steps.append(f"{running}+{addend}={running + addend}")
        running += addend
    return ",".join(steps)


def _column_fault(name: str, addends: list[int], part: str) -> str | None:
    label, _, work = part.partition(":")
    if label != name:
        return f"A working of the {name} should start with '{name}:', but this one reads {part!r}."
    used: list[int] = []
    running: int | None = None
    for step in work.split(","):
        numbers = _parse_step(step)
        if numbers is None:
            return f"In the {name}, {step!r} is not a step such as '7+6=13'."
        left, right, result = numbers
        if running is not None and left != running:
            return f"In the {name}, the step {step!r} should go on from {running} and not from {left}."
        if left + right != result:
            return f"In the {name}, {left}+{right} is {left + right} and not {result}."
        used += [right] if running is not None else [left, right]
        running = result
    if Counter(used) != Counter(addends):
        return f"The {name} should add {_listed(addends)}, but this working adds {_listed(used)}."
    return None


def _parse_step(step: str) -> tuple[int, int, int] | None:
    addition, _, result = step.partition("=")
    left, _, right = addition.partition("+")
    numbers = (left, right, result)
    if any(not number.isdecimal() or number != str(int(number)) for number in numbers):
        return None
    return int(left), int(right), int(result)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _check_choices(split: str, level: int) -> None:
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; there are three. Choose train, validation or test.")
    if level not in LEVELS:
        raise ValueError(f"level is {level}; the dial has {len(LEVELS)} positions. Choose 1 to {len(LEVELS)}.")
