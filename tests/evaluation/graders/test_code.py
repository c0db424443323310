"""Programs are judged by what they compute, compared where they cannot reach."""

import math

import pytest

from tropd.evaluation.graders.code import CallTests, CodeGrader, FunctionTests, StreamTests, agree, equality_tests
from tropd.evaluation.graders.values import LONGEST, Unknown, decode, digest, encode, written
from tropd.evaluation.sandbox import Limits, why_not_here

QUICK = Limits(cpu_seconds=1, wall_seconds=60.0, memory_bytes=1 << 30, output_bytes=1 << 20)


@pytest.fixture(scope="module")
def grader():
    if why_not_here() is not None:
        pytest.skip(str(why_not_here()))
    with CodeGrader() as made:
        yield made


REFERENCE = "def double(numbers):\n    return [2 * number for number in numbers]\n"
TESTS = FunctionTests("double", [["double", encode([[1, 2]])], ["double", encode([[]])]], REFERENCE)
SUMS = StreamTests([("1 2", "3"), ("5 6", "11")], cpu_seconds=1)


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\n"


@pytest.mark.parametrize(
    ("program", "outcome", "why"),
    [
        (REFERENCE, "right", ""),
        ("def double(n):\n    print('noise')\n    return [x + x for x in n]", "right", ""),
        ("def double(n):\n    return n", "wrong", "gives [1, 2]"),
        ("def double(n):\n    return tuple(2 * x for x in n)", "wrong", "gives (2, 4)"),
        ("def double(n):\n    n.append(1)\n    return 1 / 0", "wrong", "raises ZeroDivisionError"),
        ("def double(n):\n    while True: pass", "wrong", "processor time"),
        ("def double(n):\n    import os; os._exit(0)", "wrong", "0 of 2 calls"),
        ("def other(n): pass", "wrong", "raises NameError"),
        ("def double(n: return n", "wrong", "SyntaxError"),
        ("def double(n):\n    return double(n)", "wrong", "raises RecursionError"),
        ("def double(n):\n    yield from (2 * x for x in n)", "wrong", "<generator>"),
    ],
)
def test_a_function_is_judged_by_its_values(monkeypatch, grader, program, outcome, why):
    monkeypatch.setattr("tropd.evaluation.graders.code.LIMITS", QUICK)
    verdict = grader.grade(fenced(program), TESTS)
    assert (verdict.outcome, why in verdict.why) == (outcome, True), verdict


CHEATS = {
    "an object that equals everything": """
class Equal(list):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __iter__(self): return iter([2, 4])
    def __len__(self): return 2
class Any:
    def __eq__(self, other): return True
def double(numbers): return CHOICE
""",
    "reading the expected values": """
import gc, sys
def double(numbers):
    frame = sys._getframe()
    while frame:
        for name, value in frame.f_locals.items():
            if "expect" in name or "right" in name: return value[0]
        frame = frame.f_back
    found = [thing for thing in gc.get_objects() if isinstance(thing, list) and thing == [2, 4]]
    return found[0] if found else None
""",
    "writing the verdict": """
import os, sys
def double(numbers):
    frame = sys._getframe()
    while frame:
        for name in list(frame.f_locals): frame.f_globals[name] = True
        frame = frame.f_back
    os.write(1, b'["value", true]\\n' * 5)
    print('{"outcome": "right"}', file=sys.__stdout__)
    sys.modules["__main__"].verdict = "right"
    os._exit(0)
""",
}


@pytest.mark.parametrize("name", CHEATS)
@pytest.mark.parametrize("choice", ["Equal()", "Any()"])
def test_a_program_that_cheats_is_wrong(grader, name, choice):
    assert grader.grade(fenced(CHEATS[name].replace("CHOICE", choice)), TESTS).outcome == "wrong"


def test_without_a_closed_block_there_is_no_answer(grader):
    assert grader.grade("```python\n" + REFERENCE, TESTS).outcome == "no_answer"
    assert grader.grade("<think>" + fenced(REFERENCE), TESTS).outcome == "no_answer"


def test_a_reference_that_fails_its_own_tests_is_an_error_and_no_verdict(grader):
    broken = FunctionTests("double", TESTS.calls, "def double(n): return 1 / 0")
    with pytest.raises(ValueError, match=r"own solution of double fails its tests.*ZeroDivisionError"):
        grader.grade(fenced(REFERENCE), broken)


def test_expected_expressions_are_computed_beside_the_reference(grader):
    calls, expected = equality_tests(["assert set(double([1])) == set([2])", "assert double([True]) == [2]"])
    tests = FunctionTests("double", calls, REFERENCE, expected=expected)
    assert grader.grade(fenced(REFERENCE), tests).outcome == "right"
    assert grader.grade(fenced("def double(n): return n"), tests).outcome == "wrong"
    with pytest.raises(ValueError, match="is not of the form `assert CALL == VALUE`"):
        equality_tests(["assert f(1)"])


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("print(sum(map(int, input().split())))", "right"),
        ("a, b = map(int, open(0).read().split())\nprint(float(a + b))", "right"),
        ("def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()", "right"),
        ("print(3)", "wrong"),
        ("print(sum(map(int, input().split())))\nraise SystemExit(1)", "wrong"),
        ("while True: pass", "wrong"),
    ],
)
def test_a_program_is_judged_by_its_output(grader, program, outcome):
    assert grader.grade(fenced(program), SUMS).outcome == outcome


def test_a_method_is_judged_by_its_values(grader):
    tests = CallTests("Solution().add", "Solution", [([1, 2], 3), ([[1], [2]], [1, 2])])
    program = "class Solution:\n    def add(self, a, b):\n        return a + b"
    assert grader.grade(fenced(program), tests).outcome == "right"
    assert grader.grade(fenced(program.replace("+", "*")), tests).outcome == "wrong"


def test_long_values_travel_as_digests(grader):
    long = FunctionTests("f", [["f", encode([200_000])]], "def f(n): return [x / 2 for x in range(n)]")
    integers = "def f(n): return [x // 2 if x % 2 == 0 else x / 2 for x in range(n)]"
    assert grader.grade(fenced(integers), long).outcome == "right"
    assert grader.grade(fenced("def f(n): return [x / 2 for x in range(n - 1)]"), long).outcome == "wrong"
    assert written([1] * 100_000)[0] == "h" and written("a" * LONGEST * 2)[0] == "h"


def test_a_digest_agrees_with_the_whole_value():
    value = [1.0, {"a": {2, 3}}, (True, None), "x"]
    assert agree(digest(value), [1, {"a": {3, 2}}, (1, None), "x"]) and not agree(digest(value), [2])


@pytest.mark.parametrize(
    "value", [None, True, -5, 2**70, 0.1, math.inf, 1j, "ä\ud800", [1, [2]], (1,), {1: "a", "b": None}, {"x", 1}, ""]
)
def test_values_come_back_as_they_were(value):
    assert decode(encode(value)) == value and type(decode(encode(value))) in (type(value), frozenset)


def test_values_of_other_types_equal_nothing():
    for value in (object(), b"x", lambda: 1, range(3)):
        assert isinstance(decode(encode(value)), Unknown)
        assert decode(encode(value)) != decode(encode(value))


@pytest.mark.parametrize(
    ("expected", "given", "tolerance", "same"),
    [
        (1.0, 1.0 + 5e-7, 0, True),
        (1.0, 1.0 + 5e-6, 0, False),
        (1, 1.0000001, 0, False),
        ([1.0, 2.0], [1.0, 2.0 + 1e-7], 0, True),
        ([1.0, 2.0], (1.0, 2.0 + 1e-7), 0, False),
        ([1.0, 2.0], [1.0], 0, False),
        (math.nan, math.nan, 0, True),
        (math.inf, 1e308, 0, False),
        (5, 5.05, 0.1, False),
        (5.0, 5.05, 0.1, True),
        ("a", "b", 0.1, False),
    ],
)
def test_floats_agree_within_a_tolerance(expected, given, tolerance, same):
    assert agree(expected, given, tolerance) is same
