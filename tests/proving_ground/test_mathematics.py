"""Worked steps: any order that the facts allow is right, and what is wrong is named."""

import pytest

from tropd.proving_ground.mathematics import judge, parse, solve

PROMPT = (
    "ben has 5 more than ann. ann has 7 coins. dan has as many as ann and ben together. "
    "eva has twice as many as ann. ida has half as many as ben. how many coins does dan have?\n"
)
SOLUTION = (
    "ann = 7\nben = 5 + ann = 5 + 7 = 12\neva = 2 * 7 = 14\ndan = ann + ben = 7 + 12 = 19\nida = ben / 2 = 12 / 2 = 6\n"
    "so dan has 19 coins."
)


def test_the_example_is_right():
    assert judge(parse(PROMPT), SOLUTION).correct


@pytest.mark.parametrize(
    "change",
    [
        ("5 + ann = 5 + 7", "ann + 5 = 7 + 5"),
        ("5 + ann = 5 + 7", "7 + 5"),
        ("2 * 7", "7 + 7"),
        ("2 * 7", "ann * 2 = 7 * 2"),
        ("ann = 7\n", ""),
        ("\nida = ben / 2 = 12 / 2 = 6", ""),
    ],
)
def test_other_forms_and_steps_that_nobody_asked_for_are_free(change):
    assert change[0] in SOLUTION
    assert judge(parse(PROMPT), SOLUTION.replace(*change)).correct


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("5 + 7 = 12", "5 + 7 = 13"), "ben has 12 coins and not '13'."),
        (
            ("5 + ann = 5 + 7 = 12", "ann + ann - 2 = 12"),
            "The step of ben should read like 'ben = ann + 5 = 7 + 5 = 12'",
        ),
        (("ben = 5 + ann = 5 + 7 = 12\n", ""), "The step of dan comes before ben, which it needs."),
        (("eva = 2", "paul = 2"), "The line 'paul = 2 * 7 = 14' should start with a name of the problem."),
        (("eva = 2 * 7 = 14", "ann = 7"), "The number of ann is worked out a second time."),
        (("dan = ann + ben = 7 + 12 = 19\n", ""), "No step works out how many dan has."),
        (("so dan has 19", "so dan has 18"), "The last line should be 'so dan has 19 coins.', but it is"),
        (("\nso dan has 19 coins.", ""), "The last line should be 'so dan has 19 coins.', but it is 'ida"),
    ],
)
def test_a_wrong_step_gets_its_reason(change, reason):
    assert change[0] in SOLUTION
    verdict = judge(parse(PROMPT), SOLUTION.replace(*change))
    assert not verdict.correct
    assert verdict.reason.startswith(reason)


def test_facts_that_go_round_in_a_circle_answer_nothing():
    with pytest.raises(ValueError, match="no set of facts with a question that they answer"):
        parse("ann has 5 more than ben. ben has 5 more than ann. how many coins does ben have?")
    problem = parse("ann has 5 more than ben. ben has 5 more than ann. ida has 2 coins. how many coins does ida have?")
    assert judge(problem, "ida = 2\nso ida has 2 coins.").correct
    assert (
        judge(problem, "ann = ben + 5 = 3 + 5 = 8\nso ida has 2 coins.").reason
        == "The step of ann comes before ben, which it needs."
    )


def test_every_order_that_the_facts_allow_is_written():
    import random

    problem = parse(PROMPT)
    orders = {
        tuple(line.split()[0] for line in solve(problem, random.Random(seed)).split("\n")[:-1]) for seed in range(400)
    }
    assert len(orders) == 8
