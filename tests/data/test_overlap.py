"""Repeated prompts and evaluation problems are found under templates and other spelling, and nothing else is."""

import pytest

from tropd.data import find_duplicates, find_overlap, load_prompts, overlap
from tropd.data.wording import letters_and_digits, template

PROBLEMS = ["Find $x$ if $x+1=2$.", "What is $2^3$?", "Compute $\\tan 45$.", "Name a prime.", "Add 17 and 4."]


def wrapped(problem):
    return f"Solve the problem step by step.\n\n{problem}\n\nEnd with Answer:"


@pytest.fixture
def load(write):
    def load(prompts):
        return load_prompts(write("train.jsonl", [{"prompt": prompt} for prompt in prompts]))

    return load


@pytest.fixture
def evaluation(write):
    return write("test.jsonl", [{"problem": problem} for problem in PROBLEMS])


# ---------------------------------------------------------------------- wording


def test_letters_and_digits_are_those_that_python_knows():
    text = "".join(map(chr, range(0x3000)))
    assert letters_and_digits(text) == "".join(character for character in text.lower() if character.isalnum())


def test_a_template_survives_a_few_rows_of_another_kind():
    texts = [wrapped(f"{number} + 1") for number in range(20)] + ["Something else."]
    assert template(texts) == ("Solve the problem step by step.\n\n", " + 1\n\nEnd with Answer:")


def test_half_of_the_texts_are_no_template():
    assert template([wrapped(problem) for problem in PROBLEMS] + PROBLEMS) == ("", "")


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "one"]])
def test_fewer_than_two_different_texts_have_no_template(texts):
    assert template(texts) == ("", "")


# ---------------------------------------------------------------------- duplicates


def test_prompts_with_the_same_letters_and_digits_repeat(load):
    found = find_duplicates(load(["What is $2^3$?", "Add 1.", "what is  2^{3}", "Add 1!", "Add 1", "求值", "求和"]))
    assert (found.rows, found.different) == (7, 4)
    assert found.groups == (("train.jsonl:2", "train.jsonl:4", "train.jsonl:5"), ("train.jsonl:1", "train.jsonl:3"))
    assert found.sentence() == (
        "4 of 7 prompts are different (letters and digits compared); the most frequent occurs 3 times. For "
        "instance: train.jsonl:2 = train.jsonl:4 = train.jsonl:5; train.jsonl:1 = train.jsonl:3."
    )


def test_prompts_without_letters_are_compared_as_they_stand(load):
    assert find_duplicates(load(["+ -", "+ *", "+-"])).groups == (("train.jsonl:1", "train.jsonl:3"),)


def test_different_prompts_are_said_to_be(load):
    assert find_duplicates(load(PROBLEMS)).sentence() == "All 5 prompts are different."


def test_of_messages_the_users_are_compared(write):
    rows = [
        [{"role": "system", "content": text}, {"role": "user", "content": "one"}] for text in ("Think.", "Be kind.")
    ]
    assert find_duplicates(load_prompts(write("a.jsonl", [{"prompt": row} for row in rows]))).different == 1


# ---------------------------------------------------------------------- overlap


def test_a_template_around_the_training_prompts_hides_nothing(load, evaluation):
    data = load([wrapped(text) for text in [PROBLEMS[3], "Another one.", "find x, if x + 1 = 2", PROBLEMS[3]]])
    (found,) = find_overlap(data, [evaluation])
    assert found.pairs == (
        ("train.jsonl:1", "test.jsonl:4"),
        ("train.jsonl:3", "test.jsonl:1"),
        ("train.jsonl:4", "test.jsonl:4"),
    )
    assert (found.rows, found.problems, found.word_for_word) == (3, 2, 1)
    assert found.sentence() == (
        "2 of the 5 problems of test.jsonl are in train.jsonl (letters and digits compared; 1 word for word), in 3 of "
        "its 4 rows. For instance: train.jsonl:1 = test.jsonl:4; train.jsonl:3 = test.jsonl:1; train.jsonl:4 = "
        "test.jsonl:4. Remove these rows, or report the overlap with the score."
    )


def test_problems_that_all_begin_alike_are_found_nevertheless(load, write):
    problems = [f"Write a function to {what}." for what in ("add", "sort", "join", "split")]
    name = write("test.jsonl", [{"text": problem} for problem in problems])
    assert find_overlap(load(problems[:2]), [name])[0].problems == 2
    assert find_overlap(load([*problems[:2], "Name a prime."]), [name])[0].problems == 2
    assert find_overlap(load([wrapped(problem) for problem in problems[:2]]), [name])[0].problems == 2


def test_each_file_has_its_own_template(write, evaluation):
    names = [
        write("a.jsonl", [{"prompt": wrapped(problem)} for problem in PROBLEMS[:2]]),
        write("b.jsonl", [{"prompt": f"Question: {problem} Answer:"} for problem in PROBLEMS[2:]]),
    ]
    assert find_overlap(load_prompts(names), [evaluation])[0].problems == 5


def test_one_prompt_alone_is_compared_as_it_stands(load, evaluation):
    assert find_overlap(load([PROBLEMS[0]]), [evaluation])[0].problems == 1
    assert find_overlap(load([wrapped(PROBLEMS[0])]), [evaluation])[0].problems == 0


def test_nothing_in_common_is_said_for_each_source(load, write, evaluation):
    other = write("other.csv", "question\n" + PROBLEMS[1] + "\n")
    found = find_overlap(load([PROBLEMS[1], "Another one."]), [evaluation, other, [evaluation, other]])
    assert [overlap.problems for overlap in found] == [1, 1, 2]
    assert [overlap.evaluation for overlap in found] == ["test.jsonl", "other.csv", "test.jsonl, other.csv"]
    (nothing,) = find_overlap(load(["Another one."]), [evaluation])
    assert nothing.sentence() == "None of the 5 problems of test.jsonl is in train.jsonl."


def test_without_evaluation_sources_nothing_is_done(load, monkeypatch):
    data = load(PROBLEMS)
    monkeypatch.setattr(overlap, "_compared", None)
    assert find_overlap(data, []) == []


def test_evaluation_data_without_a_known_column_are_refused(load, write):
    name = write("test.jsonl", [{"task": "one"}])
    with pytest.raises(ValueError, match=r"test.jsonl has no column prompt or problem .*\(it has: task\)"):
        find_overlap(load(["one"]), [name])


def test_evaluation_rows_without_a_problem_are_refused(load, write):
    name = write("test.jsonl", '{"problem": "one"}\n{"problem": ""}\nnonsense\n')
    with pytest.raises(
        ValueError, match=r"2 of 3 rows .*\n  test.jsonl:2: problem is empty .*\n  test.jsonl:3: not JSON"
    ):
        find_overlap(load(["one"]), [name])
