"""`--trained_on`: finds problems of a benchmark in the training data, by a stated rule.

A problem counts as seen where a training row

- asks the same: the same letters and digits in the same order, whatever case, spacing, punctuation and LaTeX signs,
  with and without the text that nine in ten prompts of a file begin and end with (docs/data.md), or
- holds at least half of the problem's runs of 13 words, in any of its texts, solutions included. Problems of fewer
  than 13 words have no such run, and are found by the first rule alone.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.overlap import problem_column
from ..data.sources import read_records
from ..data.wording import asked, letters_and_digits, wordings
from .benchmarks.problem import Problem

WORDS = 13
"""Of a run."""
SHARE = 0.5
"""Of a problem's runs that one row holds."""

SAME, RUNS = "same text", f"{WORDS}-word runs"


@dataclass(frozen=True)
class Seen:
    """A problem that was trained on: how it was found, the share of its runs, and `file:line` of the row that holds
    most of it."""

    how: str
    share: float
    place: str


@dataclass(frozen=True)
class TrainedOn:
    """Training data, read once: the files' digests, and of each row its place, the key of each wording, and all
    words."""

    sha256: dict[str, str]
    rows: Sequence[tuple[str, frozenset[str], tuple[str, ...]]]


def read_trained_on(sources: Sequence[str]) -> TrainedOn:
    """Files, folders or names of training data."""
    rows: list[tuple[str, frozenset[str], tuple[str, ...]]] = []
    for source in sources:
        records = [record for record in read_records(source, split="train") if not record.fault]
        column = problem_column(f"trained_on has {source}, which", records)
        values = [record.values.get(column) for record in records]
        texts = wordings([asked(value) if isinstance(value, str | list) else "" for value in values])
        for record, forms in zip(records, texts, strict=True):
            keys = frozenset(key for form in forms if (key := letters_and_digits(form)))
            rows.append((record.place, keys, words_of(" \n ".join(_texts_in(record.values)))))
    files = [source for source in sources if Path(source).is_file()]
    return TrainedOn({file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}, rows)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)


def words_of(text: str) -> tuple[str, ...]:
    """Its words, as letters and digits; anything with neither is not a word.

    >>> words_of("Let $x_1 = 2$, then")
    ('let', 'x1', '2', 'then')
    """
    return tuple(word for part in text.split() if (word := letters_and_digits(part)))


def runs_of(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Every run of `WORDS` words."""
    return {tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)}


def find_seen(problems: Sequence[Problem], trained_on: TrainedOn) -> dict[str, Seen]:
    """The problems of a benchmark that are in the training data, by their ids.

    What surrounds all prompts of the benchmark is no part of a problem.
    """
    forms = wordings([problem.prompt for problem in problems])
    asking: dict[str, list[str]] = {}
    holding: dict[tuple[str, ...], list[str]] = {}
    lengths: dict[str, int] = {}
    for problem, texts in zip(problems, forms, strict=True):
        for text in texts:
            if key := letters_and_digits(text):
                asking.setdefault(key, []).append(problem.id)
        runs = runs_of(words_of(texts[-1]))
        lengths[problem.id] = len(runs)
        for run in runs:
            holding.setdefault(run, []).append(problem.id)
    seen: dict[str, Seen] = {}
    for place, keys, words in trained_on.rows:
        for identity in (identity for key in keys for identity in asking.get(key, ())):
            if identity not in seen or seen[identity].how != SAME:
                seen[identity] = Seen(SAME, 1.0, place)
        held = Counter(identity for run in runs_of(words) for identity in holding.get(run, ()))
        for identity, count in held.items():
            share = count / lengths[identity]
            if share >= SHARE and (identity not in seen or share > seen[identity].share):
                seen[identity] = Seen(RUNS, share, place)
    return seen


def described(seen: dict[str, Seen], trained_on: TrainedOn) -> dict[str, Any]:
    """As it is written beside the verdicts."""
    return {
        "trained_on": trained_on.sha256,
        "rows": len(trained_on.rows),
        "rule": {"words": WORDS, "share": SHARE},
        "problems": {identity: asdict(one) for identity, one in seen.items()},
    }
