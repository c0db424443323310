"""Scores and their errors, by hand, by enumeration and by drawing again."""

import doctest
import itertools
import json
import math
import random
import statistics

import pytest

from tropd.evaluation import scores
from tropd.evaluation.scores import Graded, compare, error_of_sampling, pass_at, score


def graded(table: dict[str, str], tokens: int = 10) -> list[Graded]:
    """`r`ight, `w`rong, `n`o answer, `u`ndecided; upper case: cut."""
    outcomes = {"r": "right", "w": "wrong", "n": "no_answer", "u": "undecided"}
    return [
        Graded(problem, sample, outcomes[letter.lower()], tokens + sample, letter.islower())
        for problem, letters in table.items()
        for sample, letter in enumerate(letters)
    ]


def test_the_examples_run():
    failed, run = doctest.testmod(scores)
    assert run and not failed


def test_scores_by_hand():
    found = score(graded({"a": "rrww", "b": "rrrr", "c": "nuWN"}))
    assert (found.problems, found.samples) == (3, 4)
    assert found.accuracy == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.error_sampling == pytest.approx(math.sqrt(0.5 * 0.5 / 3) / 3)
    assert found.error_problems == pytest.approx(statistics.stdev([0.5, 1, 0]) / math.sqrt(3))
    assert found.pass_at == {1: pytest.approx(0.5), 2: pytest.approx((5 / 6 + 1 + 0) / 3), 4: pytest.approx(2 / 3)}
    assert found.truncated == 2 / 12 and found.no_answer == 2 / 12 and found.undecided == 1 / 12
    assert found.accuracy_ended == 6 / 10
    assert found.tokens == (11.5, 11, 13)
    assert found.tokens_right == pytest.approx((10 + 11 + 46) / 6)
    assert found.tokens_wrong == pytest.approx((12 + 13 + 46) / 6)


def test_a_problem_with_more_samples_counts_no_more():
    assert score(graded({"a": "rrrr", "b": "w"})).accuracy == 0.5


def test_one_sample_has_no_error_of_sampling_and_is_written_as_null():
    found = score(graded({"a": "r", "b": "w"}))
    assert math.isnan(found.error_sampling) and found.error_problems == pytest.approx(0.5)
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert written["error_sampling"] is None and written["pass_at"] == {"1": 0.5}


def test_problems_that_were_trained_on_are_scored_apart():
    found = score(graded({"a": "rr", "b": "rw", "c": "ww"}), seen={"a", "z"})
    assert (found.seen_problems, found.accuracy_seen, found.accuracy_unseen) == (1, 1.0, 0.25)
    assert found.accuracy == 0.5 and score(graded({"a": "r"})).seen_problems is None
    assert math.isnan(score(graded({"a": "r"}), seen=set()).accuracy_seen)


def test_the_lenient_score_is_a_mean_over_problems_and_leaves_the_strict_one_alone():
    def one(problem, outcome, **details):
        return Graded(problem, len(details), outcome, 1, True, "", details)

    found = score(
        [
            one("a", "no_answer", boxed=False, last_number=True),
            one("a", "wrong", boxed=True),
            one("b", "right", boxed=True),
        ]
    )
    assert (found.accuracy, found.last_number, found.unboxed) == (0.5, 1.0, pytest.approx(1 / 3))
    assert math.isnan(score(graded({"a": "r"})).last_number) and math.isnan(score(graded({"a": "r"})).unboxed)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng, inside = random.Random(0), 0
    for _ in range(400):
        found = score([Graded(str(n), 0, "right" if rng.random() < 0.1 else "wrong", 1, True) for n in range(50)])
        low, high = scores.interval(found)
        inside += low <= 0.1 <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_groups_are_averaged_apart():
    responses = [Graded("a", 0, "right", 1, True, "x"), Graded("b", 0, "wrong", 1, True, "y")]
    assert score(responses).groups == {"x": 1.0, "y": 0.0}


def test_instructions_have_their_four_scores():
    details = [{"strict": [True, False], "loose": [True, True]}, {"strict": [True], "loose": [True]}]
    responses = [Graded(str(n), 0, "right", 1, True, details=one) for n, one in enumerate(details)]
    found = score([*responses, Graded("2", 0, "undecided", 1, True)])
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.instructions == {
        "prompt_strict": 0.5,
        "instruction_loose": 1.0,
        "instruction_strict": pytest.approx(2 / 3),
    }
    assert score([Graded("2", 0, "no_answer", 1, True)]).instructions == {}


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in (1, 4, 6) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_is_the_share_of_all_choices_of_k(n, c, k):
    right = [True] * c + [False] * (n - c)
    choices = list(itertools.combinations(right, k))
    assert pass_at(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_the_errors_are_what_drawing_again_gives():
    rng = random.Random(1)
    rates = [rng.random() for _ in range(40)]

    def draw(rates):
        return [[float(rng.random() < rate) for _ in range(8)] for rate in rates]

    same = [draw(rates) for _ in range(400)]
    spread = statistics.stdev(statistics.fmean(map(statistics.fmean, table)) for table in same)
    assert statistics.fmean(map(error_of_sampling, same)) == pytest.approx(spread, rel=0.1)
    other = [draw([rng.random() for _ in range(40)]) for _ in range(400)]
    spread = statistics.stdev(statistics.fmean(map(statistics.fmean, table)) for table in other)
    errors = [statistics.stdev(map(statistics.fmean, table)) / math.sqrt(40) for table in other]
    assert statistics.fmean(errors) == pytest.approx(spread, rel=0.1)


def test_a_comparison_is_paired_by_problem():
    many = {str(n): "rw" for n in range(30)} | {str(n): "rr" for n in range(30, 60)}
    better = {str(n): "rr" for n in range(60)}
    paired = compare([graded(better)], [graded(many)])
    assert paired.mean == pytest.approx(0.25) and 0 < paired.low < 0.25 < paired.high and paired.excludes_zero
    reordered = dict(reversed(list(many.items())))
    assert compare([graded(better)], [graded(reordered)]) == paired
    none = compare([graded(many)], [graded(many)])
    assert (none.mean, none.low, none.high) == (0, 0, 0)


def test_seeds_of_training_are_an_axis_of_a_comparison():
    good, bad = graded({str(n): "rr" for n in range(50)}), graded({str(n): "ww" for n in range(50)})
    assert compare([good], [bad]).low == 1
    mixed = compare([good, bad], [bad, good])
    assert mixed.mean == 0 and mixed.low == -1 and mixed.high == 1  # over problems alone there would be no spread


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: score([]), "no graded responses"),
        (lambda: score(graded({"a": "r"}) * 2), "has its sample 0 twice"),
        (lambda: compare([graded({"a": "r"})], []), "1 runs but 0 reference runs"),
        (
            lambda: compare([graded({"a": "r"})], [graded({"b": "r"})]),
            "have different problems: 2 are in only one of them, such as 'a'",
        ),
        (lambda: pass_at(4, 1, 5), r"pass@5 of 1 right in 4 is undefined"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
