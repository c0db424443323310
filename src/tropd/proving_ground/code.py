"""Code: short programs for a described pipeline over a list, judged by running them.

    prompt    write solve(xs): add 3 to each, then keep the even ones, then return the sum.
    response  def solve(xs):
                  ys = [3 + x for x in xs]
                  zs = []
                  for x in ys:
                      if x % 2 == 0:
                          zs.append(x)
                  return sum(zs)

A stage may be a comprehension or a loop, overwrite the list or name a new one, and write its expression in several
ways. A response is run by `tropd.proving_ground.interpreter` on lists that only the grader knows.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tropd.proving_ground.interpreter import Program, ProgramError
from tropd.proving_ground.problems import Domain, Grade, short

LEVELS: dict[int, tuple[int, int]] = {1: (1, 2), 2: (2, 3), 3: (3, 4), 4: (5, 6), 5: (8, 9)}
"""Difficulty dial: level → fewest and most stages before the return."""
ELEMENTS = ("x", "n", "v")
LISTS = ("ys", "zs", "ts", "bs", "cs", "ds", "es", "fs", "gs")
CHECKED_LISTS = 12
CAUGHT_BY = 5


class Operation(NamedTuple):
    """A stage of a pipeline: its words, its effect, and its expressions of an element or of the list.

    `shape` says what `forms` are: 'map' (new elements), 'filter' (conditions) or 'whole' (new lists).
    """

    words: str
    shape: str
    effect: Callable[[list[int], int], list[int]]
    forms: tuple[str, ...]


OPERATIONS: dict[str, Operation] = {
    "add": Operation("add {k} to each", "map", lambda xs, k: [x + k for x in xs], ("{x} + {k}", "{k} + {x}")),
    "subtract": Operation("subtract {k} from each", "map", lambda xs, k: [x - k for x in xs], ("{x} - {k}",)),
    "multiply": Operation("multiply each by {k}", "map", lambda xs, k: [x * k for x in xs], ("{x} * {k}", "{k} * {x}")),
    "double": Operation("double each", "map", lambda xs, _: [2 * x for x in xs], ("2 * {x}", "{x} * 2", "{x} + {x}")),
    "square": Operation("square each", "map", lambda xs, _: [x * x for x in xs], ("{x} * {x}", "{x} ** 2")),
    "even": Operation("keep the even ones", "filter", lambda xs, _: [x for x in xs if x % 2 == 0], ("{x} % 2 == 0",)),
    "odd": Operation(
        "keep the odd ones", "filter", lambda xs, _: [x for x in xs if x % 2], ("{x} % 2 == 1", "{x} % 2 != 0")
    ),
    "above": Operation(
        "keep those above {k}", "filter", lambda xs, k: [x for x in xs if x > k], ("{x} > {k}", "{k} < {x}")
    ),
    "below": Operation(
        "keep those below {k}", "filter", lambda xs, k: [x for x in xs if x < k], ("{x} < {k}", "{k} > {x}")
    ),
    "reverse": Operation("reverse", "whole", lambda xs, _: xs[::-1], ("{xs}[::-1]", "list(reversed({xs}))")),
    "sort": Operation("sort", "whole", lambda xs, _: sorted(xs), ("sorted({xs})",)),
    "first": Operation("take the first {k}", "whole", lambda xs, k: xs[:k], ("{xs}[:{k}]",)),
    "drop": Operation("drop the first {k}", "whole", lambda xs, k: xs[k:], ("{xs}[{k}:]",)),
}
RESULTS: dict[str, Callable[[list[int]], int | list[int]]] = {"sum": sum, "number": len, "list": list}
RESULT_SHARES = (1, 1, 2)
COMPREHENSION_SHARE = 0.35
_LARGEST_NUMBER = {"above": 40, "below": 50, "first": 6, "drop": 4}
_PATTERNS = {name: re.compile(each.words.replace("{k}", "([0-9]+)")) for name, each in OPERATIONS.items()}
_PROMPT = re.compile(r"write solve\(xs\): (.*), then return the (sum|number|list)\.")


@dataclass(frozen=True)
class Pipeline:
    """Stages, each an operation and its number (0 where it has none), and what to return."""

    stages: tuple[tuple[str, int], ...]
    result: str

    @property
    def prompt(self) -> str:
        """Text given to a model."""
        said = ", then ".join(OPERATIONS[name].words.format(k=number) for name, number in self.stages)
        return f"write solve(xs): {said}, then return the {self.result}.\n"

    @property
    def key(self) -> str:
        """Stages in order; what is returned makes no new problem."""
        return " ".join(f"{name}{number}" for name, number in self.stages)

    def run(self, values: list[int]) -> int | list[int]:
        """What a right program returns."""
        for name, number in self.stages:
            values = OPERATIONS[name].effect(values, number)
        return RESULTS[self.result](values)

    def checked_lists(self) -> list[list[int]]:
        """Lists on which a program is judged: the same every time, and different for every problem."""
        rng = random.Random(f"lists {self.key}")
        return [[rng.randint(0, 40) for _ in range(rng.randint(8, 14))] for _ in range(CHECKED_LISTS)] + [[]]


def draw(rng: random.Random, level: int) -> Pipeline:
    """A pipeline of a level, of operations that all differ and all show in the list that comes out."""
    result, count = rng.choices(list(RESULTS), RESULT_SHARES)[0], rng.randint(*LEVELS[level])
    while True:
        names = rng.sample(sorted(OPERATIONS), count)
        problem = Pipeline(tuple((name, _draw_number(rng, name)) for name in names), result)
        if _every_stage_shows(problem):
            return problem


def parse(prompt: str) -> Pipeline:
    """Pipeline behind a prompt, the inverse of `Pipeline.prompt`."""
    match = _PROMPT.fullmatch(prompt.strip())
    stages = [_parse_stage(words) for words in match[1].split(", then ")] if match else [None]
    if match is None or None in stages:
        raise ValueError(
            f"prompt is {short(prompt)}; it describes no pipeline. "
            "Write for example 'write solve(xs): double each, then return the sum.'."
        )
    return Pipeline(tuple(stage for stage in stages if stage), match[2])


def answer(problem: Pipeline) -> str:
    """What a right program returns for the list 1 to 9."""
    return str(problem.run(list(range(1, 10))))


def solve(problem: Pipeline, rng: random.Random) -> str:
    """One right program, drawn from `rng`."""
    element, overwrites = rng.choice(ELEMENTS), rng.random() < 0.5
    lines, current, fresh = ["def solve(xs):"], "xs", iter(LISTS)
    for name, number in problem.stages:
        target = current if overwrites else next(fresh)
        lines += _stage_lines(OPERATIONS[name], number, element, current, target, rng)
        current = target
    lines += _result_lines(problem.result, element, current, rng)
    return "\n".join(lines)


def judge(problem: Pipeline, response: str) -> Grade:
    """Whether a program returns the right value for every list it is tried on."""
    try:
        program = Program(response.strip(), "solve")
        for values in problem.checked_lists():
            expected, returned = problem.run(values), program(values)
            if returned != expected or type(returned) is not type(expected):
                return Grade(False, f"For {values} it should return {expected}, but it returns {short(str(returned))}.")
    except ProgramError as error:
        return Grade(False, str(error))
    return Grade(True, "The program returns the right value for every list.")


def _every_stage_shows(problem: Pipeline) -> bool:
    """Whether a program that leaves out any one stage is caught by some list."""
    lists = problem.checked_lists()[:CAUGHT_BY]
    right = [Pipeline(problem.stages, "list").run(values) for values in lists]
    for place in range(len(problem.stages)):
        shorter = Pipeline(problem.stages[:place] + problem.stages[place + 1 :], "list")
        if [shorter.run(values) for values in lists] == right:
            return False
    return True


def _draw_number(rng: random.Random, name: str) -> int:
    if "{k}" not in OPERATIONS[name].words:
        return 0
    return rng.randint(2, _LARGEST_NUMBER.get(name, 9))


def _parse_stage(words: str) -> tuple[str, int] | None:
    for name, pattern in _PATTERNS.items():
        match = pattern.fullmatch(words)
        if match:
            return name, int(match[1]) if match.groups() else 0
    return None


def _stage_lines(
    operation: Operation, number: int, element: str, current: str, target: str, rng: random.Random
) -> list[str]:
    """A stage as an assignment or as a loop that appends to a new list."""
    form = rng.choice(operation.forms).format(x=element, k=number, xs=current)
    if operation.shape == "whole":
        return [f"    {target} = {form}"]
    if rng.random() < COMPREHENSION_SHARE:
        ending = f" if {form}" if operation.shape == "filter" else ""
        item = element if operation.shape == "filter" else form
        return [f"    {target} = [{item} for {element} in {current}{ending}]"]
    built = "out" if target == current else target
    lines = [f"    {built} = []", f"    for {element} in {current}:"]
    if operation.shape == "filter":
        lines += [f"        if {form}:", f"            {built}.append({element})"]
    else:
        lines += [f"        {built}.append({form})"]
    return [*lines, f"    {target} = out"] if target == current else lines


def _result_lines(result: str, element: str, current: str, rng: random.Random) -> list[str]:
    """The return, for a sum or a number perhaps after a loop that counts up."""
    function, step = {"sum": ("sum", element), "number": ("len", "1"), "list": ("", "")}[result]
    if result == "list":
        return [f"    return {current}"]
    if rng.random() < 0.6:
        return [f"    return {function}({current})"]
    return ["    total = 0", f"    for {element} in {current}:", f"        total += {step}", "    return total"]


CODE = Domain("code", draw, parse, answer, solve, judge)
