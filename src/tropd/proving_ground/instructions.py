"""Instructions: verses that meet several constraints at once, each of which a program can check.

    prompt    write 2 lines of 5 words about the fox and the river. name the fox exactly 2 times. never write sees.
              start every line with now. close every line with a bang.
    response  1: now the fox finds the!
              2: now the old fox finds!

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
LEVELS: dict[int, tuple[int, int]] = {1: (2, 3), 2: (4, 6), 3: (6, 8), 4: (9, 11), 5: (12, 15)}
"""Difficulty dial: level → fewest and most lines."""
WORDS_PER_LINE = (5, 9)
NOUNS_IN_PROMPT = (2, 4)
MOST_TIMES = 5

_PROMPT = re.compile(
    r"write ([0-9]+) lines of ([0-9]+) words about ((?:the [a-z]+(?:, | and )?)+)\."
    r"(?: name the ([a-z]+) exactly ([0-9]+) times?\.)?"
    r"(?: never write ([a-z]+)\.)?"
    r"(?: start every line with ([a-z]+)\.)?"
    r"(?: close every line with a (dot|bang|query|semicolon)\.)?"
)


@dataclass(frozen=True)
class Instruction:
    """Constraints on a text; those that are not set are `None`.

    Attributes:
        lines: number of lines, each of which starts with its number and a colon.
        words: words in every line, number and mark apart.
        about: things that may be named; no other thing may.
        counted: thing to name exactly `times` times.
        times: see `counted`.
        avoided: word that must not occur.
        start: first word of every line.
        mark: name of the sign that closes every line; without it a line ends with any of `MARKS`.
    """

    lines: int
    words: int
    about: tuple[str, ...]
    counted: str | None = None
    times: int = 0
    avoided: str | None = None
    start: str | None = None
    mark: str | None = None

    @property
    def prompt(self) -> str:
        """Text given to a model."""
        sentences = [
            f"write {self.lines} lines of {self.words} words about {listed([f'the {n}' for n in self.about])}."
        ]
        if self.counted:
            sentences.append(f"name the {self.counted} exactly {self.times} time{'s' * (self.times > 1)}.")
        if self.avoided:
            sentences.append(f"never write {self.avoided}.")
        if self.start:
            sentences.append(f"start every line with {self.start}.")
        if self.mark:
            sentences.append(f"close every line with a {self.mark}.")
        return " ".join(sentences) + "\n"

    @property
    def key(self) -> str:
        """All constraints, the things in alphabetical order."""
        rest = (self.counted, self.times, self.avoided, self.start, self.mark)
        return f"{self.lines} {self.words} {sorted(self.about)} {rest}"


def draw(rng: random.Random, level: int) -> Instruction:
    """Constraints of a level that can be met together."""
    lines, words = rng.randint(*LEVELS[level]), rng.randint(*WORDS_PER_LINE)
    about = tuple(rng.sample(sorted(NOUNS), rng.randint(*NOUNS_IN_PROMPT)))
    counted = rng.choice(about) if rng.random() < 0.6 else None
    verbs = [verb for noun in about for verb in NOUNS[noun][1]]
    return Instruction(
        lines,
        words,
        about,
        counted,
        rng.randint(1, min(MOST_TIMES, lines)) if counted else 0,
        rng.choice(verbs) if rng.random() < 0.6 else None,
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
    lines, words, about, counted, times, avoided, start, mark = match.groups()
    things = tuple(re.findall("the ([a-z]+)", about))
    return Instruction(int(lines), int(words), things, counted, int(times or 0), avoided, start, mark)


def answer(problem: Instruction) -> str:
    """Constraints in short."""
    return f"{problem.lines} lines of {problem.words} words"


def solve(problem: Instruction, rng: random.Random) -> str:
    """One right text, drawn from `rng`."""
    shapes = [_draw_shape(problem, rng) for _ in range(problem.lines)]
    slots = [len([kind for kind in shape if kind == "noun"]) for shape in shapes]
    nouns = _draw_nouns(problem, sum(slots), rng)
    mark = MARKS[problem.mark or rng.choice(sorted(MARKS))]
    lines = []
    for number, (shape, count) in enumerate(zip(shapes, slots, strict=True), start=1):
        words = _fill(problem, shape, nouns[:count], rng)
        nouns = nouns[count:]
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
    if problem.avoided and problem.avoided in words:
        return Grade(False, f"The word {problem.avoided!r} should not occur.")
    if problem.counted and words.count(problem.counted) != problem.times:
        found = words.count(problem.counted)
        return Grade(False, f"The text should name {problem.counted} {problem.times} times, but it does {found} times.")
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
    if problem.start and words[0] != problem.start:
        return f"Line {number} should start with {problem.start!r}, but it starts with {words[0]!r}."
    if problem.mark and match[3] != MARKS[problem.mark]:
        return f"Line {number} should end with {MARKS[problem.mark]!r}, but it ends with {match[3]!r}."
    return None


def _draw_shape(problem: Instruction, rng: random.Random) -> list[str]:
    """Kinds of words of a line: perhaps a start, then 'the (adjective) noun verb' again and again, cut to length."""
    shape = ["start"] if problem.start else []
    while len(shape) < problem.words:
        shape += ["the", "adjective", "noun", "verb"] if rng.random() < 0.4 else ["the", "noun", "verb"]
    return shape[: problem.words]


def _draw_nouns(problem: Instruction, count: int, rng: random.Random) -> list[str]:
    """A thing for every place, the counted one exactly as often as asked."""
    nouns = [rng.choice([noun for noun in problem.about if noun != problem.counted]) for _ in range(count)]
    for place in rng.sample(range(count), problem.times):
        nouns[place] = problem.counted or nouns[place]
    return nouns


def _fill(problem: Instruction, shape: list[str], nouns: list[str], rng: random.Random) -> list[str]:
    """Words of a line; an adjective that the line is too short to bring to its noun describes any thing."""
    words, place = [], 0
    for kind in shape:
        noun = nouns[place] if place < len(nouns) else rng.choice(problem.about)
        if kind == "noun":
            words.append(noun)
        elif kind == "adjective":
            words.append(rng.choice(NOUNS[noun][0]))
        elif kind == "verb":
            words.append(rng.choice([verb for verb in NOUNS[nouns[place]][1] if verb != problem.avoided]))
            place += 1
        else:
            words.append(problem.start or "" if kind == "start" else "the")
    return words


INSTRUCTIONS = Domain("instructions", draw, parse, answer, solve, judge)
