"""MBPP+: types that JSON has lost come back from the assertions, and what does not come out is refused."""

import doctest
import gzip
import json

import pytest

from tropd.evaluation.benchmarks import mbpp_plus
from tropd.evaluation.benchmarks.grading import Grader
from tropd.evaluation.benchmarks.mbpp_plus import load_mbpp_plus
from tropd.evaluation.sandbox import why_not_here

SOLUTION = "def similar_elements(a, b):\n    return tuple(set(a) & set(b))\n"
ROW = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nFind the shared elements of two tuples.\nassert similar_elements((3, 4), (4, 7)) == (4,)\n"""\n',
    "entry_point": "similar_elements",
    "canonical_solution": SOLUTION,
    "assertion": "assert set(similar_elements((3, 4), (4, 7))) == set((4,))\n",
    "base_input": [[[3, 4], [4, 7]]],
    "plus_input": [[[1, 2, 3], [3, 2]], [[], []]],
    "atol": 0,
}


def load(**changes):
    return load_mbpp_plus(gzip.compress((json.dumps(ROW | changes) + "\n").encode()))


def test_the_examples_run():
    failed, run = doctest.testmod(mbpp_plus)
    assert run and not failed


def test_inputs_have_the_types_of_the_assertions():
    (problem,) = load()
    assert next(call[1] for call in problem.check.calls) == [
        "l",
        [["t", [["i", "0x3"], ["i", "0x4"]]], ["t", [["i", "0x4"], ["i", "0x7"]]]],
    ]
    assert problem.check.calls[2][1] == ["l", [["t", []], ["t", []]]]
    assert problem.prompt.startswith("Find the shared elements") and '"""' not in problem.prompt


def test_a_row_whose_inputs_do_not_come_out_as_its_assertions_is_refused():
    with pytest.raises(ValueError, match=r"Mbpp/2: no input of the file matches the arguments"):
        load(base_input=[[[3, 5], [4, 7]]])
    with pytest.raises(ValueError, match=r"Mbpp/2 has no assertion that calls similar_elements"):
        load(assertion="assert True", prompt="")


def test_its_solution_is_right_in_any_order_and_another_is_wrong():
    if why_not_here() is not None:
        pytest.skip(str(why_not_here()))
    (problem,) = load()
    other = "def similar_elements(a, b):\n    return [x for x in reversed(a) if x in b]\n"
    wrong = "def similar_elements(a, b):\n    return (4,)\n"
    lists = "def similar_elements(a, b):\n    assert type(a) is tuple\n    return tuple(set(a) & set(b))\n"
    with Grader("mbpp_plus") as grader:
        said = [grader.grade(problem, f"```python\n{one}```").outcome for one in (SOLUTION, other, wrong, lists)]
    assert said == ["right", "right", "wrong", "right"]
