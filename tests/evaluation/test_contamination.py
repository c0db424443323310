"""Problems that were trained on: by their text, and by runs of words."""

import doctest
import json

import pytest

from tropd.evaluation import contamination
from tropd.evaluation.benchmarks.loaders import BOX_PROMPT
from tropd.evaluation.benchmarks.problem import Number, Problem
from tropd.evaluation.contamination import RUNS, SAME, find_seen, read_trained_on, runs_of, words_of

LONG = "A farmer has twelve hens and each hen lays three eggs in a week while nine are eaten every single day"
OTHER = "Two trains leave the same station at noon and travel in opposite directions at forty and sixty miles an hour"


def problem(identity, text):
    return Problem(identity, BOX_PROMPT.format(problem=text), Number("1"))


PROBLEMS = [
    problem("short", "What is $1 + 1$?"),
    problem("long", LONG + ". How many are left?"),
    problem("other", OTHER),
]


def trained(tmp_path, *rows):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_trained_on([str(path)])


def test_the_examples_run():
    failed, run = doctest.testmod(contamination)
    assert run and not failed


def test_the_same_letters_and_digits_are_the_same_problem_whatever_is_around_it(tmp_path):
    rows = [{"prompt": f"Solve: {text} Think!"} for text in ("WHAT is 1+1", "what is 1 + 2", "And 3 + 4")]
    seen = find_seen(PROBLEMS, trained(tmp_path, *rows))
    assert {name: (one.how, one.place.rpartition("/")[2]) for name, one in seen.items()} == {
        "short": (SAME, "train.jsonl:1")
    }


def test_a_row_that_holds_half_of_the_runs_of_a_problem_has_seen_it_in_any_of_its_texts(tmp_path):
    words = LONG.split()
    total = len(runs_of(words_of(LONG + ". How many are left?")))
    need = -(-total // 2) + 12  # words that hold half of the runs
    for count, found in ((need, True), (need - 1, False)):
        row = {"prompt": "Something else", "messages": [{"role": "assistant", "content": " ".join(words[:count])}]}
        seen = find_seen(PROBLEMS, trained(tmp_path, row, {"prompt": "b"}))
        assert ("long" in seen) == found
    assert find_seen(PROBLEMS, trained(tmp_path, {"prompt": "x " + LONG}, {"prompt": "b"}))["long"].how == RUNS


def test_what_surrounds_every_prompt_of_the_benchmark_is_no_part_of_a_problem(tmp_path):
    wrapper = BOX_PROMPT.format(problem="Name a prime")
    assert find_seen(PROBLEMS, trained(tmp_path, {"prompt": wrapper}, {"prompt": "b"})) == {}


def test_runs_that_lie_in_two_rows_are_not_added_up(tmp_path):
    words = OTHER.split()
    halves = [{"prompt": " ".join(words[:15])}, {"prompt": " ".join(words[5:])}]
    held = [len(runs_of(words_of(row["prompt"]))) / len(runs_of(words_of(OTHER))) for row in halves]
    assert held[0] + held[1] > 0.5
    seen = find_seen(PROBLEMS, trained(tmp_path, *halves))
    assert ("other" in seen) == (max(held) >= 0.5)


def test_data_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no column prompt or problem .*\(it has: a\)"):
        trained(tmp_path, {"a": "b"})
