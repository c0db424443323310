"""Problems repeat, splits never meet, right responses are accepted and spoilt ones refused with a reason."""

import random
import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tropd.proving_ground import problems
from tropd.proving_ground.domains import DOMAINS, grade, records
from tropd.proving_ground.problems import LEVEL_SHARES, split_of

EVERY_DOMAIN = pytest.mark.parametrize("domain", DOMAINS)
SPLITS = ("train", "validation", "test")


@EVERY_DOMAIN
def test_the_same_arguments_give_the_same_records(domain):
    first = records(domain, "train", 30, seed=3)
    assert first == records(domain, "train", 30, seed=3) != records(domain, "train", 30, seed=4)
    assert all(set(record) == {"prompt", "solution", "answer", "domain", "level"} for record in first)
    assert {record["level"] for record in records(domain, "train", 200, seed=0)} == set(LEVEL_SHARES)


@EVERY_DOMAIN
@pytest.mark.parametrize("level", LEVEL_SHARES)
def test_every_generated_solution_is_right_and_every_prompt_is_read_back(domain, level):
    for record in records(domain, "validation", 60, seed=0, level=level):
        assert grade(domain, record["prompt"], record["solution"]).correct
        assert DOMAINS[domain].parse(record["prompt"]).prompt == record["prompt"]


@EVERY_DOMAIN
@settings(max_examples=60)
@given(seed=st.integers(), level=st.sampled_from(sorted(LEVEL_SHARES)))
def test_any_seed_gives_a_problem_with_many_right_solutions(domain, seed, level):
    kind, rng = DOMAINS[domain], random.Random(seed)
    problem = kind.draw(rng, level)
    solutions = {kind.solve(problem, rng) for _ in range(40)}
    assert all(kind.judge(problem, solution).correct for solution in solutions)
    assert len(solutions) > 1


@EVERY_DOMAIN
def test_splits_share_no_problem(domain):
    keys = [{problem.key for problem, _ in islice(DOMAINS[domain].stream(split, 0), 150)} for split in SPLITS]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


@EVERY_DOMAIN
def test_one_problem_in_ten_is_for_validation_and_one_in_ten_for_test(domain):
    rng = random.Random(0)
    splits = [split_of(DOMAINS[domain].draw(rng, 3)) for _ in range(1500)]
    assert 0.07 < splits.count("test") / 1500 < 0.13
    assert 0.07 < splits.count("validation") / 1500 < 0.13


def test_no_rewording_of_a_problem_crosses_splits():
    parse = DOMAINS["mathematics"].parse
    assert parse("add the columns. ones: 7 2. tens: 4 8.").key == parse("add the columns. ones: 2 7. tens: 4 8.").key
    parse = DOMAINS["instructions"].parse
    assert (
        parse("write 2 lines of 5 words about the fox and the moon.").key
        == parse("write 2 lines of 5 words about the moon and the fox.").key
    )
    parse = DOMAINS["code"].parse
    pipeline = "write solve(xs): add 3 to each, then keep the even ones, then return the {}."
    assert len({parse(pipeline.format(result)).key for result in ("sum", "number", "list")}) == 1


@EVERY_DOMAIN
def test_a_solution_with_a_line_left_out_is_wrong_unless_it_still_does_what_is_asked(domain):
    refused = 0
    for record in records(domain, "test", 60, seed=1, level=3):
        lines = record["solution"].split("\n")
        verdicts = [grade(domain, record["prompt"], "\n".join(lines[:n] + lines[n + 1 :])) for n in range(len(lines))]
        assert all(verdict.reason.endswith(".") for verdict in verdicts)
        refused += any(not verdict.correct for verdict in verdicts)
    assert refused == 60


@EVERY_DOMAIN
def test_a_solution_cut_short_is_wrong(domain):
    for record in records(domain, "test", 40, seed=2):
        verdict = grade(domain, record["prompt"], record["solution"][: len(record["solution"]) // 2])
        assert not verdict.correct and verdict.reason.endswith(".")


@settings(max_examples=150)
@given(text=st.text(), domain=st.sampled_from(sorted(DOMAINS)))
def test_any_text_is_judged_and_breaks_nothing(text, domain):
    record = records(domain, "test", 1, seed=0)[0]
    assert not grade(domain, record["prompt"], text).correct


@settings(max_examples=150)
@given(seed=st.integers(), domain=st.sampled_from(sorted(DOMAINS)))
def test_shuffled_words_of_a_solution_are_judged_and_break_nothing(seed, domain):
    rng = random.Random(seed)
    record = records(domain, "test", 8, seed=1, level=1)[rng.randrange(8)]
    words = re.findall(r"\s+|\w+|[^\w\s]", record["solution"])
    for _ in range(4):
        words[rng.randrange(len(words))] = rng.choice(words)
    assert grade(domain, record["prompt"], "".join(words)).reason.endswith(".")


@EVERY_DOMAIN
@pytest.mark.parametrize(
    "prompt", ["", "hello", "add the columns. tens: 7 2.", "write solve(xs): fly, then return the sum."]
)
def test_a_prompt_of_another_kind_is_answered_in_a_sentence(domain, prompt):
    with pytest.raises(ValueError, match=r"prompt is .*Write for example"):
        grade(domain, prompt, "")


def test_mistaken_arguments_are_answered_in_sentences(monkeypatch):
    monkeypatch.setattr(problems, "_DRAWS_WITHOUT_NEWS", 20)
    with pytest.raises(ValueError, match=r"domain is 'maths'; there are 3. Choose mathematics, code, instructions"):
        records("maths", "train", 1, seed=0)
    with pytest.raises(ValueError, match=r"split is 'dev'.*Choose train, validation or test"):
        records("code", "dev", 1, seed=0)
    with pytest.raises(ValueError, match=r"level is 9.*Choose 1 to 5"):
        records("code", "train", 1, seed=0, level=9)
    with pytest.raises(ValueError, match="count is -1"):
        records("code", "train", -1, seed=0)
    with pytest.raises(ValueError, match="the test split of code at level 1 gave only"):
        records("code", "test", 2_000, seed=0, level=1)
