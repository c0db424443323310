"""What the three domains share: splits by hash, verdicts, and streams of problems that a seed determines."""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, get_args

Split = Literal["train", "validation", "test"]

LEVEL_SHARES = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.2, 5: 0.2}
"""How often a problem comes from each level where no level is asked for: the default mix."""

_DRAWS_WITHOUT_NEWS = 3_000


class Grade(NamedTuple):
    """Verdict on a response, for example `Grade(False, "ben has 12 and not 13.")`."""

    correct: bool
    reason: str


class Problem(Protocol):
    """A problem is what its prompt says; `key` names it up to rewordings that change nothing."""

    @property
    def prompt(self) -> str:
        """Text given to a model; it ends with a newline, after which the response starts."""

    @property
    def key(self) -> str:
        """Canonical form, the same for problems that differ only in the order of what they say."""


@dataclass(frozen=True)
class Domain:
    """One kind of problem: how to draw it, write it, read it back, solve it and judge a response."""

    name: str  # key of the registry `DOMAINS`
    draw: Callable[[random.Random, int], Any]  # a problem of a level, drawn from `rng`
    parse: Callable[[str], Any]  # the problem behind a prompt, the inverse of `Problem.prompt`
    answer: Callable[[Any], str]  # what a right response comes to, in short
    solve: Callable[[Any, random.Random], str]  # one of many right responses, drawn from `rng`
    judge: Callable[[Any, str], Grade]  # whether a response is right, and if not, what is wrong first

    def stream(self, split: Split, seed: int | str, level: int | None = None) -> Iterator[tuple[Any, int]]:
        """Endless (problem, level) of one split, the same for the same arguments; repeats are possible."""
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}; there are three. Choose train, validation or test.")
        if level is not None and level not in LEVEL_SHARES:
            raise ValueError(f"level is {level}; the dial has {len(LEVEL_SHARES)} positions. Choose 1 to 5, or None.")
        rng = random.Random(f"{self.name} {split} {seed} {level}")
        while True:
            chosen = rng.choices(list(LEVEL_SHARES), list(LEVEL_SHARES.values()))[0] if level is None else level
            problem = self.draw(rng, chosen)
            if split_of(problem) == split:
                yield problem, chosen


def split_of(problem: Problem) -> Split:
    """Split that owns a problem, by a hash of its canonical form.

    One problem in ten belongs to validation, one in ten to test. Since the split is a function of
    the problem alone, the three are disjoint by construction.
    """
    bucket = int.from_bytes(hashlib.blake2b(problem.key.encode(), digest_size=8).digest(), "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def distinct_problems(
    domain: Domain, split: Split, count: int, seed: int | str, level: int | None = None
) -> list[tuple[Any, int]]:
    """First `count` problems of the stream that differ in their canonical form, each with its level."""
    if count < 0:
        raise ValueError(f"count is {count}; a list cannot have fewer than 0 problems. Choose 0 or more.")
    found: dict[str, tuple[Any, int]] = {}
    draws_without_news = 0
    for problem, chosen in islice(domain.stream(split, seed, level), None if count else 0):
        draws_without_news = draws_without_news + 1 if problem.key in found else 0
        found.setdefault(problem.key, (problem, chosen))
        if len(found) == count:
            break
        if draws_without_news == _DRAWS_WITHOUT_NEWS:
            raise ValueError(
                f"count is {count}; the {split} split of {domain.name} at level {level} gave only {len(found)} "
                f"problems. Choose at most {len(found)}, or a higher level."
            )
    return list(found.values())


def listed(words: list[str] | tuple[str, ...]) -> str:
    """Words as in a sentence: 'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))


def short(text: str, limit: int = 60) -> str:
    """Text quoted in a verdict, cut where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
