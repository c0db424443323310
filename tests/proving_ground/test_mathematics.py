"""Worked steps: any order that the facts allow is right, and what is wrong is named."""

import pytest

from tropd.proving_ground.mathematics import judge, parse, solve

PROMPT = "ben = ann + 5. ann is 7. dan = ann + ben. eva = 2 * ann. ida = ben / 2. what is dan?\n"
SOLUTION = (
    "ann is 7\nben = 5 + ann = 5 + 7, ben is 12\neva = 2 * ann = 2 * 7, eva is 14\n"
    "dan = ann + ben = 7 + 12, dan is 19\nida = ben / 2 = 12 / 2, ida is 6\nso dan is 19."
)


def test_the_example_is_right():
    assert judge(parse(PROMPT), SOLUTION).correct


@pytest.mark.parametrize(
    "change",
    [
        ("5 + ann = 5 + 7", "ann + 5 = 7 + 5"),
        ("2 * ann = 2 * 7", "ann + ann = 7 + 7"),
        ("2 * ann = 2 * 7", "ann * 2 = 7 * 2"),
        ("ann is 7\n", ""),
        ("\nida = ben / 2 = 12 / 2, ida is 6", ""),
    ],
)
def test_other_forms_and_steps_that_nobody_asked_for_are_free(change):
    assert change[0] in SOLUTION
    assert judge(parse(PROMPT), SOLUTION.replace(*change)).correct


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("ben is 12", "ben is 13"), "ben is 12 and not '13'."),
        (("5 + ann = 5 + 7", "ann + ann - 2"), "The step of ben should read like 'ben = ann + 5 = 7 + 5, ben is 12'"),
        (("5 + ann = 5 + 7", "5 + 7"), "The step of ben should read like 'ben = ann + 5 = 7 + 5, ben is 12'"),
        (("ben = 5 + ann = 5 + 7, ben is 12\n", ""), "The step of dan comes before ben, which it needs."),
        (("eva", "paul"), "The line 'paul = 2 * ann = 2 * 7, paul is 14' should start with a name of the problem."),
        (("eva = 2 * ann = 2 * 7, eva is 14", "ann is 7"), "The step of ann comes a second time."),
        (("dan = ann + ben = 7 + 12, dan is 19\n", ""), "No step works out dan."),
        (("so dan is 19", "so dan is 18"), "The last line should be 'so dan is 19.', but it is"),
        (("\nso dan is 19.", ""), "The last line should be 'so dan is 19.', but it is 'ida"),
    ],
)
def test_a_wrong_step_gets_its_reason(change, reason):
    assert change[0] in SOLUTION
    verdict = judge(parse(PROMPT), SOLUTION.replace(*change))
    assert not verdict.correct
    assert verdict.reason.startswith(reason)


def test_facts_that_go_round_in_a_circle_answer_nothing():
    with pytest.raises(ValueError, match="no set of facts with a question that they answer"):
        parse("ann = ben + 5. ben = ann + 5. what is ben?")
    problem = parse("ann = ben + 5. ben = ann + 5. ida is 2. what is ida?")
    assert judge(problem, "ida is 2\nso ida is 2.").correct
    assert (
        judge(problem, "ann = ben + 5 = 3 + 5, ann is 8\nso ida is 2.").reason
        == "The step of ann comes before ben, which it needs."
    )


def test_every_order_that_the_facts_allow_is_written():
    import random

    problem = parse(PROMPT)
    orders = {
        tuple(line.split(maxsplit=1)[0].rstrip(":") for line in solve(problem, random.Random(seed)).split("\n")[:-1])
        for seed in range(400)
    }
    assert len(orders) == 8
