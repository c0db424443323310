"""The generator repeats, its splits never meet, and the grader explains what it does not accept."""

import random
from itertools import islice, permutations

import pytest

from tropd.proving_ground.arithmetic import (
    LEVELS,
    Problem,
    distinct_problems,
    grade,
    parse_prompt,
    problem_stream,
    split_of,
    worked_answer,
)

PROBLEM = Problem((347, 582, 916))
WORKING = "ones:7+6=13,13+2=15;tens:8+1=9,9+1=10,10+4=14;hundreds:3+1=4,4+5=9,9+9=18;total:1845"


def test_the_same_seed_gives_the_same_problems_and_workings():
    first, again = (distinct_problems("train", 50, seed=3) for _ in range(2))
    assert first == again != distinct_problems("train", 50, seed=4)
    workings, same = ([worked_answer(p, random.Random(1)) for p in problems] for problems in (first, again))
    assert workings == same


def test_a_problem_belongs_to_one_split_whatever_the_order_of_its_numbers():
    for problem in islice(problem_stream("test", seed=0), 50):
        assert {split_of(Problem(order)) for order in permutations(problem.numbers)} == {"test"}


def test_splits_share_no_sum():
    sums = [
        {tuple(sorted(p.numbers)) for p in distinct_problems(split, 300, seed=0, level=1)}
        for split in ("train", "validation", "test")
    ]
    assert not sums[0] & sums[1] and not sums[0] & sums[2] and not sums[1] & sums[2]


def test_one_problem_in_ten_is_for_validation_and_one_in_ten_for_test():
    rng = random.Random(0)
    splits = [split_of(Problem(tuple(rng.randrange(100, 1000) for _ in range(3)))) for _ in range(5000)]
    assert 0.08 < splits.count("test") / 5000 < 0.12
    assert 0.08 < splits.count("validation") / 5000 < 0.12


@pytest.mark.parametrize("level", LEVELS)
def test_every_generated_working_is_right(level):
    rng = random.Random(level)
    for problem in distinct_problems("train", 100, seed=0, level=level):
        assert grade(problem, worked_answer(problem, rng)).correct
        assert parse_prompt(problem.prompt) == problem


def test_all_orders_of_a_column_are_right_and_the_generator_writes_them_all():
    problem = Problem((12, 23, 34))
    rest = ";tens:1+2=3,3+3=6;total:69"
    orders = {f"ones:{a}+{b}={a + b},{a + b}+{c}=9{rest}" for a, b, c in permutations((2, 3, 4))}
    assert len(orders) == 6 and all(grade(problem, working).correct for working in orders)
    written = {worked_answer(problem, random.Random(seed)).split(";")[0] for seed in range(200)}
    assert written == {working.split(";")[0] for working in orders}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("13+2=15", "13+2=16"), "In the ones, 13+2 is 15 and not 16."),
        (("13+2=15", "12+2=14"), "In the ones, the step '12+2=14' should go on from 13 and not from 12."),
        (("9+1=10,10+4=14", "9+4=13"), "The tens should add 1, 1, 4, 8, but this working adds 1, 4, 8."),
        (("hundreds:", "tens:"), "A working of the hundreds should start with 'hundreds:'"),
        (("4+5=9", "4+5"), "In the hundreds, '4+5' is not a step such as '7+6=13'."),
        (("7+6=13", "07+6=13"), "In the ones, '07+6=13' is not a step such as '7+6=13'."),
        ((";total:1845", ""), "The working stops before 'total:'."),
        (("1845", "1854"), "The working should end in 'total:1845', but it ends in 'total:1854'."),
        (("1845", "1845;"), "The working should end in 'total:1845', but it ends in 'total:1845;'."),
    ],
)
def test_a_wrong_working_gets_its_reason(change, reason):
    assert grade(PROBLEM, WORKING).correct
    verdict = grade(PROBLEM.prompt, WORKING.replace(*change))
    assert not verdict.correct
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize("response", ["", ";;;;", "total:1845", "ones:", "ones:²+1=3", "ones:7", "x" * 300])
def test_nonsense_is_wrong_and_breaks_nothing(response):
    verdict = grade(PROBLEM, response)
    assert not verdict.correct and verdict.reason.endswith(".")


def test_mistaken_arguments_are_answered_in_sentences():
    with pytest.raises(ValueError, match=r"split is 'dev'.*Choose train, validation or test"):
        distinct_problems("dev", 1, seed=0)
    with pytest.raises(ValueError, match=r"level is 9.*Choose 1 to 5"):
        distinct_problems("train", 1, seed=0, level=9)
    with pytest.raises(ValueError, match="count is -1"):
        distinct_problems("train", -1, seed=0)
    with pytest.raises(ValueError, match="count is 100000; the test split of level 1 gave only"):
        distinct_problems("test", 100_000, seed=0, level=1)
    with pytest.raises(ValueError, match="prompt is 'hello'"):
        parse_prompt("hello")
    with pytest.raises(ValueError, match="numbers is"):
        Problem((5, 12))
