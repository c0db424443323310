"""Each constraint is checked, and the first that a text misses is named."""

import pytest

from tropd.proving_ground.instructions import judge, parse

PROMPT = (
    "write 2 lines of 5 words about the fox and the river. name the fox in line 2 only. never write sees. "
    "start every line with now. close every line with a bang.\n"
)
SOLUTION = "1: now the river runs the!\n2: now the old fox finds!"


def test_the_example_is_right_and_sense_is_not_asked_for():
    assert judge(parse(PROMPT), SOLUTION).correct
    assert judge(parse(PROMPT), "1: now now river river now!\n2: now fox fox now fox!").correct


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("runs the!", "runs!"), "Line 1 should have 5 words, but it has 4."),
        (("2: now", "3: now"), "Line 2 should have the number 2, but it has 3."),
        (("2: now", "2: soon"), "Line 2 should start with 'now', but it starts with 'soon'."),
        (("finds!", "finds."), "Line 2 should end with '!', but it ends with '.'."),
        (("finds!", "finds"), "Line 2 should read like '2: the fox sees.', but it reads"),
        (("\n2: now the old fox finds!", ""), "The text should have 2 lines, but it has 1."),
        (("old", "moon"), "The text should be about fox and river only, but it names moon."),
        (("old", "sees"), "The word 'sees' should not occur."),
        (("fox", "river"), "Line 2 should name fox."),
        (("runs", "fox"), "Line 1 should not name fox."),
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
