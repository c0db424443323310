"""Mathematics: quantities that depend on each other, worked out step by step in any order that the facts allow.

    prompt    ben has ann + 5. ann has 7. dan has ann + ben. eva has 2 * ann. how many has dan?
    response  ann = 7
              ben: 5 + ann = 5 + 7, ben = 12
              eva: 7 + 7, eva = 14
              dan: ann + ben = 7 + 12, dan = 19
              so dan has 19.

Facts stand in no order. A step may come as soon as what it needs is known, its operands may be exchanged, twice may be
written as a sum, and the names may be left out: many responses are right, so a good teacher is not certain.
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property

from tropd.proving_ground.problems import Domain, Grade, listed, short

NAMES = (
    *("ann", "ben", "cleo", "dan", "eva", "fred", "gina", "hugo"),
    *("ida", "jack", "kim", "leo", "mia", "noah", "olga", "paul"),
)
MAX_VALUE = 30
"""Largest number of a problem."""
LEVELS: dict[int, tuple[int, int]] = {1: (3, 4), 2: (4, 5), 3: (6, 7), 4: (8, 10), 5: (11, 14)}
"""Difficulty dial: level → fewest and most facts."""

_PATTERNS = {
    "given": re.compile("([0-9]+)"),
    "more": re.compile(r"([a-z]+) \+ ([0-9]+)"),
    "fewer": re.compile("([a-z]+) - ([0-9]+)"),
    "twice": re.compile(r"2 \* ([a-z]+)"),
    "half": re.compile("([a-z]+) / 2"),
    "together": re.compile(r"([a-z]+) \+ ([a-z]+)"),
}
"""How the prompt writes each kind of fact."""


@dataclass(frozen=True)
class Fact:
    """What a problem says of one name: how many it has, or how to get there from `needs`."""

    name: str
    kind: str
    needs: tuple[str, ...] = ()
    number: int = 0

    def value(self, values: dict[str, int]) -> int:
        """Number that the fact gives, from the values of what it needs."""
        known = [values[name] for name in self.needs]
        if self.kind == "given":
            return self.number
        if self.kind == "half":
            return known[0] // 2
        return {"more": sum(known) + self.number, "fewer": sum(known) - self.number, "twice": 2 * sum(known)}.get(
            self.kind, sum(known)
        )

    def forms(self) -> list[str]:
        """Right-hand sides that say how to work it out, in names; '7' for a given number."""
        (a, b), number = (*self.needs, "", "")[:2], self.number
        return {
            "given": [f"{number}"],
            "more": [f"{a} + {number}", f"{number} + {a}"],
            "fewer": [f"{a} - {number}"],
            "twice": [f"2 * {a}", f"{a} * 2", f"{a} + {a}"],
            "half": [f"{a} / 2"],
            "together": [f"{a} + {b}", f"{b} + {a}"],
        }[self.kind]

    def steps(self, values: dict[str, int]) -> list[str]:
        """Every right way to write this step, given the values of all names."""
        result = f"{self.name} = {values[self.name]}"
        if self.kind == "given":
            return [result]
        steps = []
        for form in self.forms():
            numbers = re.sub("[a-z]+", lambda m: str(values[m[0]]), form)
            steps += [f"{self.name}: {form} = {numbers}, {result}", f"{self.name}: {numbers}, {result}"]
        return steps


@dataclass(frozen=True)
class MathProblem:
    """Facts in the order of the prompt, and the name asked for."""

    facts: tuple[Fact, ...]
    asked: str

    @property
    def prompt(self) -> str:
        """Text given to a model."""
        said = ". ".join(f"{fact.name} has {fact.forms()[0]}" for fact in self.facts)
        return f"{said}. how many has {self.asked}?\n"

    @property
    def key(self) -> str:
        """Facts in alphabetical order: question and order of the prompt make no new problem."""
        return "; ".join(sorted(f"{fact.name} {fact.kind} {fact.number} {sorted(fact.needs)}" for fact in self.facts))

    @cached_property
    def values(self) -> dict[str, int]:
        """How many every name has, or fewer names where the facts go round in a circle."""
        values: dict[str, int] = {}
        for _ in self.facts:
            for fact in self.facts:
                if all(name in values for name in fact.needs):
                    values[fact.name] = fact.value(values)
        return values


def draw(rng: random.Random, level: int) -> MathProblem:
    """A problem of a level; every value lies between 1 and `MAX_VALUE`."""
    count = rng.randint(*LEVELS[level])
    names = rng.sample(NAMES, count)
    facts: list[Fact] = []
    values: dict[str, int] = {}
    for place, name in enumerate(names):
        fact = _draw_fact(rng, name, names[:place], values)
        facts.append(fact)
        values[name] = fact.value(values)
    return MathProblem(tuple(rng.sample(facts, count)), names[-1])


def parse(prompt: str) -> MathProblem:
    """Problem behind a prompt, the inverse of `MathProblem.prompt`."""
    *sentences, question = prompt.strip().split(". ")
    asked = re.fullmatch(r"how many has ([a-z]+)\?", question)
    facts = [_parse_fact(sentence) for sentence in sentences]
    problem = MathProblem(tuple(filter(None, facts)), asked[1]) if asked and all(facts) else None
    if problem is None or len({f.name for f in problem.facts}) < len(facts) or problem.asked not in problem.values:
        raise ValueError(
            f"prompt is {short(prompt)}; it is no set of facts with a question that they answer. "
            "Write for example 'ann has 7. ben has ann + 5. how many has ben?'."
        )
    return problem


def answer(problem: MathProblem) -> str:
    """Number asked for."""
    return str(problem.values[problem.asked])


def solve(problem: MathProblem, rng: random.Random) -> str:
    """One right response: every fact worked out, in an order and in forms drawn from `rng`."""
    waiting, known, lines = list(problem.facts), set[str](), list[str]()
    while waiting:
        fact = rng.choice([fact for fact in waiting if known.issuperset(fact.needs)])
        waiting.remove(fact)
        known.add(fact.name)
        lines.append(rng.choice(fact.steps(problem.values)))
    return "\n".join([*lines, _ending(problem)])


def judge(problem: MathProblem, response: str) -> Grade:
    """Whether every step follows from the facts and the last line gives the right number."""
    facts = {fact.name: fact for fact in problem.facts}
    known = {fact.name for fact in problem.facts if fact.kind == "given"}
    worked: set[str] = set()
    *lines, ending = response.strip(" ").split("\n")
    for line in lines:
        name = _first_word(line)
        fault = _step_fault(problem, facts, known, worked, line)
        if fault:
            return Grade(False, fault)
        worked.add(name)
        known.add(name)
    if ending != _ending(problem):
        return Grade(False, f"The last line should be {_ending(problem)!r}, but it is {short(ending)}.")
    if problem.asked not in worked:
        return Grade(False, f"No step works out how many {problem.asked} has.")
    return Grade(True, "Every step follows, and the answer is right.")


def _step_fault(
    problem: MathProblem, facts: dict[str, Fact], known: set[str], worked: set[str], line: str
) -> str | None:
    name, values = _first_word(line), problem.values
    if name not in facts:
        return f"The line {short(line)} should start with a name of the problem."
    if name in worked:
        return f"The number of {name} is worked out a second time."
    missing = [need for need in facts[name].needs if need not in known]
    if missing:
        return f"The step of {name} comes before {listed(missing)}, which it needs."
    if line in facts[name].steps(values):
        return None
    result = line.rsplit(" = ", 1)[-1]
    if result != str(values[name]):
        return f"{name} has {values[name]} and not {short(result)}."
    return f"The step of {name} should read like {facts[name].steps(values)[0]!r}, but it reads {short(line)}."


def _draw_fact(rng: random.Random, name: str, earlier: list[str], values: dict[str, int]) -> Fact:
    if not earlier or (len(earlier) < 3 and rng.random() < 0.3):
        return Fact(name, "given", number=rng.randint(2, 12))
    while True:
        a, b = rng.choice(earlier[-4:]), rng.choice(earlier)
        kind = rng.choice(("more", "fewer", "twice", "half", "together"))
        needs = (a, b) if kind == "together" else (a,)
        fact = Fact(name, kind, needs, rng.randint(1, 9) if kind in ("more", "fewer") else 0)
        fits = 1 <= fact.value(values) <= MAX_VALUE and not (kind == "half" and values[a] % 2)
        if fits and (kind != "together" or a != b):
            return fact


def _parse_fact(sentence: str) -> Fact | None:
    name, _, said = sentence.partition(" has ")
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(said)
        if match and re.fullmatch("[a-z]+", name):
            needs = tuple(word for word in match.groups() if word.isalpha())
            numbers = [int(word) for word in match.groups() if word.isdecimal()]
            return Fact(name, kind, needs, *numbers)
    return None


def _first_word(line: str) -> str:
    return re.split("[ :]", line, maxsplit=1)[0]


def _ending(problem: MathProblem) -> str:
    return f"so {problem.asked} has {problem.values[problem.asked]}."


MATHEMATICS = Domain("mathematics", draw, parse, answer, solve, judge)
