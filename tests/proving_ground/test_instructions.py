"""Each constraint is checked, and the first that a text misses is named."""

import pytest

from tropd.proving_ground.instructions import judge, parse

PROMPT = (
    "write 2 lines of 5 words about the fox and the river. start line 2 with fox. "
    "start all other lines with now. close every line with a bang.\n"
)
SOLUTION = "1: now the river runs the!\n2: fox finds the old river!"


def test_the_example_is_right_and_sense_is_not_asked_for():
    assert judge(parse(PROMPT), SOLUTION).correct
    assert judge(parse(PROMPT), "1: now fox finds river fox!\n2: fox finds now now now!").correct


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("runs the!", "runs!"), "Line 1 should have 5 words, but it has 4."),
        (("2: fox", "3: fox"), "Line 2 should have the number 2, but it has 3."),
        (("1: now", "1: soon"), "Line 1 should start with 'now', but it starts with 'soon'."),
        (("2: fox", "2: now"), "Line 2 should start with 'fox', but it starts with 'now'."),
        (("old river!", "old river."), "Line 2 should end with '!', but it ends with '.'."),
        (("old river!", "old river"), "Line 2 should read like '2: the fox sees.', but it reads"),
        (("\n2: fox finds the old river!", ""), "The text should have 2 lines, but it has 1."),
        (("old", "moon"), "The text should be about fox and river only, but it names moon."),
    ],
)
def test_a_missed_constraint_is_named(change, reason):
    assert change[0] in SOLUTION
    verdict = judge(parse(PROMPT), SOLUTION.replace(*change))
    assert not verdict.correct
    assert verdict.reason.startswith(reason)


def test_what_is_not_asked_for_is_free():
    problem = parse("write 1 lines of 3 words about the fox and the river.")
    assert all(judge(problem, f"1: {text}").correct for text in ("fox fox fox?", "once sees river;", "a b c."))
