"""Repeated prompts, and prompts that are also used for evaluation.

Two prompts are the same here if they have the same letters and digits in the same order, whatever their case, spacing,
punctuation and LaTeX signs. That finds a problem that is typeset differently, but confuses −150 with 150 and 22.5 with
225: check matches that are not the same word for word. A problem that was rephrased is not found.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import basename

from .files import Record
from .prompts import PROBLEM_COLUMNS, PromptData
from .refusals import BadRow, refusal
from .rows import prompt_fault
from .sources import Source, parts_of, read_records
from .wording import asked, letters_and_digits, without_space, wordings

Compared = dict[str, str]
"""Letters and digits of each wording of a text, to the wording."""

EXAMPLES = 3
"""At most this many are named in a message."""


@dataclass(frozen=True)
class Duplicates:
    """How often prompts repeat: `groups` has the places of each that does, the most frequent first."""

    rows: int
    different: int
    groups: tuple[tuple[str, ...], ...]

    def sentence(self) -> str:
        if not self.groups:
            return f"All {self.rows:,} prompts are different."
        return (
            f"{self.different:,} of {self.rows:,} prompts are different (letters and digits compared); the most "
            f"frequent occurs {len(self.groups[0])} times. For instance: {_examples(self.groups)}."
        )


@dataclass(frozen=True)
class Overlap:
    """What training prompts and an evaluation set have in common.

    `pairs` has, for each training row that holds an evaluation problem, its place and the problem's. So many `problems`
    are in the training data, and `word_for_word` of them are there as they stand, spaces aside.
    """

    training: str
    evaluation: str
    training_rows: int
    evaluation_problems: int
    pairs: tuple[tuple[str, str], ...]
    problems: int
    word_for_word: int

    @property
    def rows(self) -> int:
        """How many training rows hold an evaluation problem."""
        return len(self.pairs)

    def sentence(self) -> str:
        if not self.pairs:
            return f"None of the {self.evaluation_problems:,} problems of {self.evaluation} is in {self.training}."
        return (
            f"{self.problems:,} of the {self.evaluation_problems:,} problems of {self.evaluation} are in "
            f"{self.training} (letters and digits compared; {self.word_for_word:,} word for word), in {self.rows:,} of "
            f"its {self.training_rows:,} rows. For instance: {_examples(self.pairs)}. Remove these rows, or report the "
            "overlap with the score."
        )


def _examples(groups: Sequence[Sequence[str]]) -> str:
    return "; ".join(" = ".join(map(basename, group[:EXAMPLES])) for group in groups[:EXAMPLES])


def find_duplicates(data: PromptData) -> Duplicates:
    """Prompts that repeat, by their letters and digits; of messages, the user's are compared.

    A template around every prompt makes no difference here, so it is kept.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for prompt, place in zip(data.dataset["prompt"][:], data.places, strict=True):
        text = asked(prompt)
        groups[letters_and_digits(text) or without_space(text)].append(place)
    repeated = sorted((tuple(group) for group in groups.values() if len(group) > 1), key=len, reverse=True)
    return Duplicates(len(data), len(groups), tuple(repeated))


def find_overlap(data: PromptData, evaluation_sources: Iterable[Source]) -> list[Overlap]:
    """Evaluation problems that are trained on, for each evaluation source.

    Training sets often wrap each problem in one instruction, which would hide every match. So a prompt is compared
    twice, as it stands and without the text that nine in ten different prompts of its file begin and end with; see
    `wording.template`. Evaluation problems are compared in the same two ways; of sources with splits, `test` is read,
    and the problem is in the first of `PROBLEM_COLUMNS` that a source has.

    Returns:
        An overlap for each source, in their order.

    Raises:
        ValueError: a source that cannot be read, that has no such column, or rows without a problem.
    """
    sources = [parts_of(source) for source in evaluation_sources]
    if not sources:
        return []
    prompts = _compared([asked(prompt) for prompt in data.dataset["prompt"][:]], data.places)
    return [_overlap(data, prompts, source) for source in sources]


def _overlap(data: PromptData, prompts: Sequence[Compared], source: Sequence[str]) -> Overlap:
    texts, places = _problems(source)
    problems = _compared(texts, places)
    rows_with: dict[str, list[int]] = defaultdict(list)
    for row, problem in enumerate(problems):
        for key in problem:
            rows_with[key].append(row)
    pairs: list[tuple[str, str]] = []
    touched: set[int] = set()
    word_for_word: set[int] = set()
    for prompt, place in zip(prompts, data.places, strict=True):
        matches = {row for key in prompt for row in rows_with.get(key, ())}
        if not matches:
            continue
        words = set(map(without_space, prompt.values()))
        same = {row for row in matches if not words.isdisjoint(map(without_space, problems[row].values()))}
        pairs.append((place, places[min(same or matches)]))
        touched |= matches
        word_for_word |= same
    return Overlap(
        data.source, ", ".join(source), len(data), len(places), tuple(pairs), len(touched), len(word_for_word)
    )


def _compared(texts: Sequence[str], places: Sequence[str]) -> list[Compared]:
    """What is compared of each text; the template of each file is found by itself."""
    files: dict[str, list[int]] = defaultdict(list)
    for row, place in enumerate(places):
        files[place.rpartition(":")[0]].append(row)
    found: dict[int, Compared] = {}
    for rows in files.values():
        for row, forms in zip(rows, wordings([texts[row] for row in rows]), strict=True):
            found[row] = {key: text for text in forms if (key := letters_and_digits(text))}
    return [found[row] for row in range(len(texts))]


def _problems(source: Sequence[str]) -> tuple[list[str], list[str]]:
    texts, places, bad = [], [], []
    for part in source:
        records = list(read_records(part, split="test"))
        column = problem_column(part, records)
        for record in records:
            value = record.values.get(column)
            fault = record.fault or prompt_fault(column, value)
            if fault:
                bad.append(BadRow(record.place, fault))
            else:
                texts.append(asked(value))
                places.append(record.place)
    if bad:
        raise refusal(bad, len(bad) + len(texts), "Correct these rows, or name another column for the problem.")
    return texts, places


def problem_column(part: str, records: Sequence[Record]) -> str:
    """The column that holds what is asked."""
    there = dict.fromkeys(name for record in records for name in record.values)
    for name in PROBLEM_COLUMNS:
        if name in there:
            return name
    raise ValueError(
        f"{part} has no column {' or '.join(PROBLEM_COLUMNS)} to compare with (it has: {', '.join(there) or 'none'}). "
        "Rename the column with the problem."
    )
