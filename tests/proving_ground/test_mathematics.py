"""Worked steps: any order that the facts allow is right, and what is wrong is named."""

import pytest

from tropd.proving_ground.mathematics import judge, parse, solve

PROMPT = "ben has ann + 5. ann has 7. dan has ann + ben. eva has 2 * ann. ida has ben / 2. how many has dan?\n"
SOLUTION = (
    "ann = 7\nben: 5 + ann = 5 + 7, ben = 12\neva: 2 * 7, eva = 14\ndan: ann + ben = 7 + 12, dan = 19\n"
    "ida: ben / 2 = 12 / 2, ida = 6\nso dan has 19."
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
        ("\nida: ben / 2 = 12 / 2, ida = 6", ""),
    ],
)
def test_other_forms_and_steps_that_nobody_asked_for_are_free(change):
    assert change[0] in SOLUTION
    assert judge(parse(PROMPT), SOLUTION.replace(*change)).correct


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("ben = 12", "ben = 13"), "ben has 12 and not '13'."),
        (("5 + ann = 5 + 7", "ann + ann - 2"), "The step of ben should read like 'ben: ann + 5 = 7 + 5, ben = 12'"),
        (("ben: 5 + ann = 5 + 7, ben = 12\n", ""), "The step of dan comes before ben, which it needs."),
        (("eva: 2 * 7, eva", "paul: 2 * 7, paul"), "The line 'paul: 2 * 7, paul = 14' should start with a name of the"),
        (("eva: 2 * 7, eva = 14", "ann = 7"), "The number of ann is worked out a second time."),
        (("dan: ann + ben = 7 + 12, dan = 19\n", ""), "No step works out how many dan has."),
        (("so dan has 19", "so dan has 18"), "The last line should be 'so dan has 19.', but it is"),
        (("\nso dan has 19.", ""), "The last line should be 'so dan has 19.', but it is 'ida"),
    ],
)
def test_a_wrong_step_gets_its_reason(change, reason):
    assert change[0] in SOLUTION
    verdict = judge(parse(PROMPT), SOLUTION.replace(*change))
    assert not verdict.correct
    assert verdict.reason.startswith(reason)


def test_facts_that_go_round_in_a_circle_answer_nothing():
    with pytest.raises(ValueError, match="no set of facts with a question that they answer"):
        parse("ann has ben + 5. ben has ann + 5. how many has ben?")
    problem = parse("ann has ben + 5. ben has ann + 5. ida has 2. how many has ida?")
    assert judge(problem, "ida = 2\nso ida has 2.").correct
    assert (
        judge(problem, "ann: ben + 5 = 3 + 5, ann = 8\nso ida has 2.").reason
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
