"""Code: what a program computes is computed inside of the sandbox and compared outside.

Expected values never enter the process that runs a model's program. Where a benchmark has none, its own solution is
run in a process of its own.
"""

import ast
import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from ..sandbox import Limits, Outcome, Sandbox
from .text import behind_thinking, python_block
from .values import Digest, decode, digest, encode
from .verdict import NO_ANSWER, RIGHT, UNDECIDED, WRONG, Verdict

Call = list[Any]
"""[expression] or [expression, encoded arguments]; see `values.answer_calls`."""

CALLS = "from tropd.evaluation.graders.values import answer_calls; answer_calls()"

LIMITS = Limits(cpu_seconds=20, wall_seconds=300.0, memory_bytes=4 << 30, output_bytes=64 << 20)

RELATIVE_TOLERANCE = 1e-7

FLOAT_TOLERANCE = 1e-6
"""Absolute, where the expected value is a float or made of floats and a problem names no tolerance of its own."""


@dataclass(frozen=True)
class FunctionTests:
    """Calls of a function.

    Attributes:
        defines: the name that the program must define.
        calls: what is computed.
        reference: the benchmark's own solution, whose values are the expected ones.
        preamble: put before the program, such as the imports and helpers that a prompt shows.
        setup: appended to the program, such as values that the calls use.
        expected: expressions of the expected values, computed beside the reference; `None`: the calls themselves are.
        agrees: (call, expected, given), where a value may be right without being the expected one.
        tolerance: of floats, absolute.
    """

    defines: str
    calls: Sequence[Call]
    reference: str
    preamble: str = ""
    setup: str = ""
    expected: Sequence[str] | None = None
    agrees: Callable[[Call, Any, Any], bool] | None = None
    tolerance: float = 0.0

    def passes(self, call: Call, right: Any, given: Any) -> bool:
        return self.agrees(call, right, given) if self.agrees else agree(right, given, self.tolerance)


@dataclass(frozen=True)
class StreamTests:
    """Inputs of a program that reads standard input, each with the output it must write.

    Attributes:
        cases: (input, output).
        cpu_seconds: for each.
    """

    cases: Sequence[tuple[str, str]]
    cpu_seconds: int = 6


@dataclass(frozen=True)
class CallTests:
    """Calls of a function with values that are known.

    Attributes:
        expression: what is called, such as `Solution().twoSum`.
        defines: the name that the program must define.
        cases: (arguments, value).
        preamble: put before the program.
    """

    expression: str
    defines: str
    cases: Sequence[tuple[list[Any], Any]]
    preamble: str = ""


Tests = FunctionTests | StreamTests | CallTests


class CodeGrader(AbstractContextManager["CodeGrader"]):
    """Runs programs in one sandbox. Close it, or use it as a context manager.

    Raises:
        SandboxRefused: this machine cannot contain a program.
    """

    def __init__(self) -> None:
        self._sandbox = Sandbox(preload=("tropd.evaluation.graders.values",))
        self._expected: dict[str, list[Any]] = {}

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sandbox.close()

    def grade(self, response: str, tests: Tests, thinking_opened: bool = False) -> Verdict:
        """Does the last block of Python in `response` pass every test?"""
        name = None if isinstance(tests, StreamTests) else tests.defines
        program = python_block(behind_thinking(response, thinking_opened), name)
        if program is None:
            return Verdict(NO_ANSWER, why="no closed block of code")
        if isinstance(tests, StreamTests):
            return self._streams(program, tests)
        return self._calls(program, tests) if isinstance(tests, CallTests) else self._functions(program, tests)

    def _functions(self, program: str, tests: FunctionTests) -> Verdict:
        expected = self.expected_values(tests)
        outcome, given = self._values(f"{tests.preamble}\n{program}\n{tests.setup}", tests.calls)
        for call, right, value in zip(tests.calls, expected, given, strict=False):
            if isinstance(value, Raised) or not tests.passes(call, right, value):
                return Verdict(WRONG, program, f"{_shown(call)}: {_told(value)}")
        return self._whole(program, outcome, len(given), len(expected))

    def expected_values(self, tests: FunctionTests) -> list[Any]:
        """What the benchmark's own solution gives; kept, as every sample of a problem asks for it.

        Raises:
            ValueError: the solution does not run to its end.
        """
        calls = tests.calls if tests.expected is None else [[text] for text in tests.expected]
        reference = f"{tests.reference}\n{tests.setup}"
        key = json.dumps([reference, calls])
        if key not in self._expected:
            outcome, values = self._values(reference, calls)
            raised = [value for value in values if isinstance(value, Raised)]
            if len(values) != len(calls) or raised:
                raise ValueError(
                    f"the benchmark's own solution of {tests.defines} fails its tests "
                    f"({raised[0].name if raised else _end(outcome)}). Is the file complete?"
                )
            self._expected[key] = values
        return self._expected[key]

    def _calls(self, program: str, tests: CallTests) -> Verdict:
        calls = [[tests.expression, encode(list(arguments))] for arguments, _ in tests.cases]
        outcome, given = self._values(f"{tests.preamble}\n{program}", calls)
        for call, (_, right), value in zip(calls, tests.cases, given, strict=False):
            if isinstance(value, Raised) or not agree(right, value):
                return Verdict(WRONG, program, f"{_shown(call)}: {_told(value)}")
        return self._whole(program, outcome, len(given), len(calls))

    def _streams(self, program: str, tests: StreamTests) -> Verdict:
        limits = replace(LIMITS, cpu_seconds=tests.cpu_seconds)
        for number, (given, right) in enumerate(tests.cases, 1):
            outcome = self._sandbox.run(program, given.encode(), limits)
            if not outcome.succeeded:
                return Verdict(WRONG, program, f"test {number}: {_end(outcome)}")
            if not same_output(right, outcome.stdout.decode(errors="replace")):
                return Verdict(WRONG, program, f"test {number}: wrong output")
        return Verdict(RIGHT, program)

    def _whole(self, program: str, outcome: Outcome, given: int, asked: int) -> Verdict:
        """All values that there are agree: are they all?"""
        if given == asked:
            return Verdict(RIGHT, program)
        if outcome.ended == "wall":
            return Verdict(UNDECIDED, program, "stopped by the wall clock before its limit of processor time")
        return Verdict(WRONG, program, f"finished {given} of {asked} calls, then {_end(outcome)}")

    def _values(self, program: str, calls: Sequence[Call]) -> tuple[Outcome, list[Any]]:
        order = json.dumps({"program": program, "calls": list(calls)}).encode()
        outcome = self._sandbox.run(CALLS, order, LIMITS)
        return outcome, list(_read_values(outcome.stdout))[: len(calls)]


@dataclass(frozen=True)
class Raised:
    """A call that raised an exception of this name."""

    name: str


def _read_values(stdout: bytes) -> Any:
    """The values of whole lines; what a program wrote in between by other ways ends the reading."""
    for line in stdout.splitlines():
        try:
            kind, said = json.loads(line)
            yield Raised(str(said)) if kind == "raised" else decode(said)
        except (ValueError, TypeError, RecursionError):
            return


def agree(expected: Any, given: Any, tolerance: float = 0.0) -> bool:
    """Equal as Python has it; floats within a tolerance, where the expected value is made of floats.

    >>> agree([1, 2], (1, 2)), agree(1, True), agree(0.1 + 0.2, 0.3), agree([0.3], [0.3000001])
    (False, True, True, True)
    """
    if isinstance(expected, Digest) or isinstance(given, Digest):
        return digest(expected) == digest(given)
    if expected == given:
        return True
    if tolerance == 0 and _is_floats(expected):
        tolerance = FLOAT_TOLERANCE
    return tolerance != 0 and type(expected) is type(given) and _close(expected, given, tolerance)


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(expected: Any, given: Any, tolerance: float) -> bool:
    if isinstance(expected, list | tuple) and isinstance(given, list | tuple):
        pairs = zip(expected, given, strict=False)
        return len(expected) == len(given) and all(_close(*pair, tolerance) for pair in pairs)
    if not (isinstance(expected, int | float) and isinstance(given, int | float)):
        return bool(expected == given)
    if not (math.isfinite(expected) and math.isfinite(given)):
        return expected == given or (math.isnan(expected) and math.isnan(given))
    return abs(expected - given) <= tolerance + RELATIVE_TOLERANCE * abs(expected)


def same_output(expected: str, given: str) -> bool:
    """Line by line without surrounding blanks; lines of numbers as numbers.

    >>> same_output("1 2.50\\n", " 1.0 2.5"), same_output("yes", "Yes")
    (True, False)
    """
    right, written = ([line.strip() for line in text.strip().splitlines()] for text in (expected, given))
    pairs = zip(right, written, strict=False)
    return len(right) == len(written) and all(a == b or _same_numbers(a, b) for a, b in pairs)


def _same_numbers(expected: str, given: str) -> bool:
    try:
        right, written = ([Decimal(word) for word in line.split()] for line in (expected, given))
    except InvalidOperation:
        return False
    return right == written


def equality_tests(assertions: Sequence[str]) -> tuple[list[Call], list[str]]:
    """`assert LEFT == RIGHT`, split: what is computed with the program, and what its values must be.

    Raises:
        ValueError: an assertion of another form.

    >>> equality_tests(["assert f(1, 2) == [3]"])
    ([['f(1, 2)']], ['[3]'])
    """
    calls, expected = [], []
    for assertion in assertions:
        body = ast.parse(assertion.strip()).body
        test = body[0].test if len(body) == 1 and isinstance(body[0], ast.Assert) else None
        if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
            raise ValueError(
                f"{assertion!r} is not of the form `assert CALL == VALUE`, so it cannot be graded from outside."
            )
        calls.append([ast.unparse(test.left)])
        expected.append(ast.unparse(test.comparators[0]))
    return calls, expected


def _shown(call: Call) -> str:
    text = call[0] if len(call) == 1 else f"{call[0]}(*{decode(call[1])!r})"
    return text if len(text) < 200 else text[:200] + "…"


def _told(value: Any) -> str:
    text = f"raises {value.name}" if isinstance(value, Raised) else f"gives {value!r}"
    return text if len(text) < 200 else text[:200] + "…"


def _end(outcome: Outcome) -> str:
    if outcome.ended != "exit":
        return {"cpu": "exceeded its limit of processor time", "wall": "exceeded its time limit"}.get(
            outcome.ended, "exceeded its limit of threads"
        )
    return outcome.last_words[-200:] or f"exit code {outcome.exit_code}"
