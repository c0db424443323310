"""A user's own JSONL, graded by a function of theirs."""

import json

import pytest

from tropd.evaluation.benchmarks.grading import Grader
from tropd.evaluation.benchmarks.registry import benchmark, find, load
from tropd.proving_ground.domains import records

HERE = "evaluation.graders.test_reward"


def by_length(prompts, completions, least, **columns):
    assert prompts == ["Say it"] and columns == {"id": ["one"]}
    return [len(completions[0]) / least[0]]


def undecided(prompts, completions, **columns):
    return [None]


def broken(prompts, completions, **columns):
    raise KeyError("gold")


def no_list(prompts, completions, **columns):
    return 1.0


def problems(tmp_path, function, rows):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one = benchmark(f"{path}@{function}")
    assert one.name == "own" and not one.needs_sandbox
    return load(one, find(one, tmp_path))


def grade(tmp_path, function, response):
    (problem,) = problems(tmp_path, f"{HERE}:{function}", [{"question": "Say it", "id": "one", "least": 4}])
    assert problem.prompt == "Say it", "asked as it stands"
    with Grader("own") as grader:
        return grader.grade(problem, response)


def test_a_reward_of_one_or_more_is_right_and_less_is_wrong(tmp_path):
    assert grade(tmp_path, "by_length", "abcd").outcome == "right"
    assert grade(tmp_path, "by_length", "abcdefgh").details == {"reward": 2.0}
    verdict = grade(tmp_path, "by_length", "ab")
    assert (verdict.outcome, verdict.why) == ("wrong", "reward 0.5")
    assert grade(tmp_path, "undecided", "ab").outcome == "undecided"


@pytest.mark.parametrize(
    ("function", "sentence"),
    [("broken", r"failed on the problem 'Say it' with KeyError: 'gold'"), ("no_list", "gave 1.0 for one response")],
)
def test_a_function_that_fails_stops_the_grading_in_a_sentence(tmp_path, function, sentence):
    with pytest.raises(ValueError, match=sentence):
        grade(tmp_path, function, "ab")


@pytest.mark.parametrize("name", ["nowhere:x", f"{HERE}:missing", f"{HERE}:HERE", "no_colon"])
def test_a_function_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="benchmarks has the reward function"):
        problems(tmp_path, name, [{"question": "a"}])


def test_a_row_without_a_question_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"own.jsonl:2 has the columns text; .* one of problem, question, prompt"):
        problems(tmp_path, f"{HERE}:undecided", [{"question": "a"}, {"text": "b"}])


def test_the_proving_ground_grades_its_own_solutions_as_right(tmp_path):
    rows = records("code", "test", 2, seed=0)
    found = problems(tmp_path, "tropd.proving_ground.domains:reward", rows)
    with Grader("own") as grader:
        assert [grader.grade(one, row["solution"]).outcome for one, row in zip(found, rows, strict=True)] == [
            "right"
        ] * 2
        assert grader.grade(found[0], "no").outcome == "wrong"
