"""Column sums: any order within a column is right, and what is wrong is named."""

import random
from itertools import permutations

import pytest

from tropd.proving_ground.mathematics import judge, parse, solve

PROMPT = "add the columns. ones: 7 2 6. tens: 4 8 1. hundreds: 3 5 9.\n"
SOLUTION = (
    "ones: 7 + 6 = 13, 2 + 13 = 15\ntens: 1 + 8 = 9, 9 + 1 = 10, 10 + 4 = 14\n"
    "hundreds: 3 + 1 = 4, 5 + 4 = 9, 9 + 9 = 18\ntotal: 1 8 4 5"
)


def test_the_example_is_right():
    assert judge(parse(PROMPT), SOLUTION).correct
    assert parse(PROMPT).total == 1845


def test_all_orders_of_a_column_are_right_and_the_generator_writes_them_all():
    problem = parse("add the columns. ones: 2 3 4. tens: 1 2 3.\n")
    ends = "\ntens: 1 + 2 = 3, 3 + 3 = 6\ntotal: 6 9"
    orders = set()
    for a, b, c in permutations((2, 3, 4)):
        orders |= {f"ones: {a} + {b} = {a + b}, {last} = 9" for last in (f"{a + b} + {c}", f"{c} + {a + b}")}
    assert len(orders) == 12 and all(judge(problem, order + ends).correct for order in orders)
    assert {solve(problem, random.Random(seed)).split("\n")[0] for seed in range(400)} == orders


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("2 + 13 = 15", "2 + 13 = 16"), "In the ones, 2 + 13 is 15 and not 16."),
        (("2 + 13 = 15", "2 + 12 = 14"), "In the ones, the step '2 + 12 = 14' should continue from 13."),
        (("2 + 13 = 15", "3 + 13 = 16"), "In the ones, the step '3 + 13 = 16' adds 3, which is not left to add."),
        (("9 + 1 = 10, 10 + 4 = 14", "9 + 4 = 13"), "The tens should add 1, 1, 4, 8, but 1 is left out."),
        (("hundreds:", "tens:"), "The line of the hundreds should start with 'hundreds: ', but it reads"),
        (("5 + 4 = 9", "5 + 4"), "In the hundreds, '5 + 4' is not a step such as '7 + 6 = 13'."),
        (("7 + 6 = 13", "07 + 6 = 13"), "In the ones, '07 + 6 = 13' is not a step such as '7 + 6 = 13'."),
        (("\ntotal: 1 8 4 5", ""), "The response stops before 'total:'."),
        (("1 8 4 5", "1 8 5 4"), "The response should end in 'total: 1 8 4 5', but it ends in 'total: 1 8 5 4'."),
        (("1 8 4 5", "1 8 4 5\n"), "The response should end in 'total: 1 8 4 5', but it ends in"),
    ],
)
def test_a_wrong_response_gets_its_reason(change, reason):
    assert change[0] in SOLUTION
    verdict = judge(parse(PROMPT), SOLUTION.replace(*change))
    assert not verdict.correct
    assert verdict.reason.startswith(reason)
