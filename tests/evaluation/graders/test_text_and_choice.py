"""The answer is found where a response gives it, and nowhere else."""

import doctest

import pytest

from tropd.evaluation.graders import choice, code, mathematics, text, values, verdict
from tropd.evaluation.graders.choice import grade_choice
from tropd.evaluation.graders.text import behind_thinking, last_box, python_block


@pytest.mark.parametrize("module", [choice, code, mathematics, text, values, verdict])
def test_the_examples_run(module):
    failed, run = doctest.testmod(module)
    assert run and not failed


@pytest.mark.parametrize(
    ("response", "opened", "behind"),
    [
        ("plain", False, "plain"),
        ("<think>a</think>b", False, "b"),
        ("a</think>b", True, "b"),  # the prompt opened the thought
        ("<think>a</think>b<think>c</think>d", False, "d"),
        ("<think>never ended 33", False, ""),
        ("never ended 33", True, ""),
    ],
)
def test_the_answer_is_behind_the_last_thought(response, opened, behind):
    assert behind_thinking(response, opened) == behind


@pytest.mark.parametrize(
    ("response", "box"),
    [
        (r"\boxed{33}", "33"),
        (r"\boxed {33}", "33"),
        (r"\boxed{12} … wait \boxed{33}", "33"),
        (r"\boxed{33} … no: \boxed{12}", "12"),
        (r"\boxed{12} and cut \boxed{33", "12"),
        (r"\boxed{33", None),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}"),
        (r"\boxed{a\boxed{b}}", "b"),
        ("we get 33", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_box_that_is_closed_counts(response, box):
    assert last_box(response) == box


def test_fifty_thousand_open_boxes_are_read_in_no_time():
    assert last_box(r"\boxed{" * 50_000) is None
    assert last_box(r"\boxed{" * 50_000 + "1" + "}" * 50_000) == "1"


FENCED = "```python\ndef f(x):\n    return x\n```\n"


@pytest.mark.parametrize(
    ("response", "defines", "program"),
    [
        (FENCED, "f", "def f(x):\n    return x\n"),
        (FENCED + "Use it:\n```python\nprint(f(1))\n```", "f", "def f(x):\n    return x\n"),
        (FENCED + "```\nprint(1)\n```", None, "print(1)\n"),
        (FENCED + "```bash\npython f.py\n```", None, "def f(x):\n    return x\n"),
        ("```python\ndef f(x):", "f", None),
        ("def f(x): return x", "f", None),
        ("Text:\r\n```py\r\nprint(1)\r\n```\r\n", None, "print(1)\r\n"),
        ("1. List\n   ```python\n   print(1)\n   ```", None, "   print(1)\n"),
    ],
)
def test_the_program_is_the_last_closed_block_that_defines_what_is_asked_for(response, defines, program):
    assert python_block(response, defines) == program


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Answer: B", "B"),
        ("The answer is (B).", "B"),
        ("**Answer: B**", "B"),
        ("Answer: **B**", "B"),
        ("The correct answer is B", "B"),
        (r"so $\boxed{B}$", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        ("Answer: A. No, answer: B.", "B"),
        ("<think>Answer: A</think>Answer: B", "B"),
        ("As an answer, all are good", None),
        ("The answer is A dog", None),
        ("The answer is As you like it", None),
        ("B", None),
        ("Answer: F", None),  # there are four
        ("<think>Answer: B", None),
        ("answer: b", None),
    ],
)
def test_a_letter_is_an_answer_where_it_is_given_as_one(response, letter):
    got = grade_choice(response, "B")
    assert got.answer == letter
    assert got.outcome == ("right" if letter == "B" else "no_answer")
    assert grade_choice(response, "C").outcome == ("wrong" if letter else "no_answer")
