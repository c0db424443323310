"""Instructions: verses that meet several constraints at once, each of which a program can check.

    prompt    write 2 lines of 5 words about the fox and the river. start line 2 with fox.
              start all other lines with now. close every line with a bang.
    response  1: now the river runs the!
              2: fox finds the old river!

Which things are named where, and what they do, is free: many verses are right. Sense is not asked for.
"""

import random
import re
from dataclasses import dataclass

from tropd.proving_ground.problems import Domain, Grade, listed, short

NOUNS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "fox": (("old", "red"), ("sees", "finds")),
    "river": (("cold", "wide"), ("sings", "runs")),
    "moon": (("pale", "old"), ("shines", "sleeps")),
    "stone": (("grey", "cold"), ("waits", "sleeps")),
    "bird": (("small", "red"), ("sings", "flies")),
    "tree": (("wide", "green"), ("waits", "grows")),
    "wind": (("cold", "soft"), ("runs", "calls")),
    "child": (("small", "soft"), ("finds", "calls")),
    "ship": (("grey", "pale"), ("flies", "shines")),
    "garden": (("green", "old"), ("grows", "sees")),
}
"""Things to write about, each with two words that describe it and two that say what it does."""
ADJECTIVES = tuple(sorted({word for words, _ in NOUNS.values() for word in words}))
VERBS = tuple(sorted({word for _, words in NOUNS.values() for word in words}))
STARTS = ("now", "then", "here", "soon", "once")
MARKS = {"dot": ".", "bang": "!", "query": "?", "semicolon": ";"}
"""Signs that close a line, by their names in a prompt."""
LEVELS: dict[int, tuple[int, int]] = {1: (2, 4), 2: (5, 6), 3: (7, 9), 4: (10, 13), 5: (14, 18)}
"""Difficulty dial: level → fewest and most lines."""
WORDS_PER_LINE = (4, 7)
NOUNS_IN_PROMPT = (2, 4)
MOST_PLACES = 4

_PROMPT = re.compile(
    r"write ([0-9]+) lines of ([0-9]+) words about ((?:the [a-z]+(?:, | and )?)+)\."
    r"(?: start lines? ([0-9]+(?:(?:, | and )[0-9]+)*) with ([a-z]+)\.)?"
    r"(?: start (?:every line|all other lines) with ([a-z]+)\.)?"
    r"(?: close every line with a (dot|bang|query|semicolon)\.)?"
)


@dataclass(frozen=True)
class Instruction:
    """Constraints on a text; those that are not set are `None`."""

    lines: int  # number of lines, each of which starts with its number and a colon
    words: int  # words in every line, number and mark apart
    about: tuple[str, ...]  # things that may be named; no other thing may
    placed: str | None = None  # thing that is the first word of the lines `places`
    places: tuple[int, ...] = ()  # see `placed`; line numbers from 1, ascending
    start: str | None = None  # first word of every line, or of those that are not among `places`
    mark: str | None = None  # name of the sign that closes every line; without it a line ends with any of `MARKS`

    @property
    def prompt(self) -> str:
        """Text given to a model."""
        sentences = [
            f"write {self.lines} lines of {self.words} words about {listed([f'the {n}' for n in self.about])}."
        ]
        if self.placed:
            lines = f"line{'s' * (len(self.places) > 1)} {listed([str(place) for place in self.places])}"
            sentences.append(f"start {lines} with {self.placed}.")
        if self.start:
            sentences.append(f"start {'all other lines' if self.placed else 'every line'} with {self.start}.")
        if self.mark:
            sentences.append(f"close every line with a {self.mark}.")
        return " ".join(sentences) + "\n"

    @property
    def key(self) -> str:
        """All constraints, the things in alphabetical order."""
        rest = (self.placed, self.places, self.start, self.mark)
        return f"{self.lines} {self.words} {sorted(self.about)} {rest}"


def draw(rng: random.Random, level: int) -> Instruction:
    """Constraints of a level that can be met together."""
    lines, words = rng.randint(*LEVELS[level]), rng.randint(*WORDS_PER_LINE)
    about = tuple(rng.sample(sorted(NOUNS), rng.randint(*NOUNS_IN_PROMPT)))
    placed = rng.choice(about) if rng.random() < 0.6 else None
    places = sorted(rng.sample(range(1, lines + 1), rng.randint(1, min(MOST_PLACES, lines - 1))))
    return Instruction(
        lines,
        words,
        about,
        placed,
        tuple(places) if placed else (),
        rng.choice(STARTS) if rng.random() < 0.5 else None,
        rng.choice(sorted(MARKS)) if rng.random() < 0.7 else None,
    )


def parse(prompt: str) -> Instruction:
    """Constraints behind a prompt, the inverse of `Instruction.prompt`."""
    match = _PROMPT.fullmatch(prompt.strip())
    if match is None:
        raise ValueError(
            f"prompt is {short(prompt)}; it is no instruction of this kind. "
            "Write for example 'write 2 lines of 5 words about the fox and the river.'."
        )
    lines, words, about, places, placed, start, mark = match.groups()
    things = tuple(re.findall("the ([a-z]+)", about))
    numbers = tuple(map(int, re.findall("[0-9]+", places or "")))
    return Instruction(int(lines), int(words), things, placed, numbers, start, mark)


def answer(problem: Instruction) -> str:
    return f"{problem.lines} lines of {problem.words} words"


def solve(problem: Instruction, rng: random.Random) -> str:
    """One right text, drawn from `rng`."""
    mark = MARKS[problem.mark or rng.choice(sorted(MARKS))]
    lines = []
    for number in range(1, problem.lines + 1):
        words = _fill(problem, _draw_shape(problem, number, rng), number, rng)
        lines.append(f"{number}: {' '.join(words)}{mark}")
    return "\n".join(lines)


def judge(problem: Instruction, response: str) -> Grade:
    """Whether a text meets every constraint, and if not, which it misses first."""
    lines = response.strip(" ").split("\n")
    for number, line in enumerate(lines, start=1):
        fault = _line_fault(problem, number, line)
        if fault:
            return Grade(False, fault)
    if len(lines) != problem.lines:
        return Grade(False, f"The text should have {problem.lines} lines, but it has {len(lines)}.")
    words = re.findall("[a-z]+", response)
    strangers = [word for word in words if word in NOUNS and word not in problem.about]
    if strangers:
        return Grade(False, f"The text should be about {listed(problem.about)} only, but it names {strangers[0]}.")
    return Grade(True, "The text meets every constraint.")


def _line_fault(problem: Instruction, number: int, line: str) -> str | None:
    match = re.fullmatch(r"([0-9]+): ((?:[a-z]+ )*[a-z]+)([.!?;])", line)
    if match is None:
        return f"Line {number} should read like '{number}: the fox sees.', but it reads {short(line)}."
    words = match[2].split(" ")
    if match[1] != str(number):
        return f"Line {number} should have the number {number}, but it has {match[1]}."
    if len(words) != problem.words:
        return f"Line {number} should have {problem.words} words, but it has {len(words)}."
    start = problem.placed if number in problem.places else problem.start
    if start and words[0] != start:
        return f"Line {number} should start with {start!r}, but it starts with {words[0]!r}."
    if problem.mark and match[3] != MARKS[problem.mark]:
        return f"Line {number} should end with {MARKS[problem.mark]!r}, but it ends with {match[3]!r}."
    return None


def _draw_shape(problem: Instruction, number: int, rng: random.Random) -> list[str]:
    """Kinds of words of a line: its due start, then 'the (adjective) noun verb' again and again, cut to length."""
    shape = ["noun", "verb"] if number in problem.places else ["start"] if problem.start else []
    while len(shape) < problem.words:
        shape += ["the", "adjective", "noun", "verb"] if rng.random() < 0.4 else ["the", "noun", "verb"]
    return shape[: problem.words]


def _fill(problem: Instruction, shape: list[str], number: int, rng: random.Random) -> list[str]:
    words: list[str] = []
    noun = problem.placed if problem.placed and number in problem.places else rng.choice(problem.about)
    for kind in shape:
        if kind == "noun":
            words.append(noun)
        elif kind == "adjective":
            words.append(rng.choice(NOUNS[noun][0]))
        elif kind == "verb":
            words.append(rng.choice(NOUNS[noun][1]))
            noun = rng.choice(problem.about)
        else:
            words.append(problem.start or "" if kind == "start" else "the")
    return words


INSTRUCTIONS = Domain("instructions", draw, parse, answer, solve, judge)
