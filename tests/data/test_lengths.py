"""Prompts beyond the budget are refused by name, or dropped and counted."""

import pytest

from tropd.data import check_lengths, load_prompts

PROMPTS = ["one", "a long prompt", "two", "another long prompt"]


def words(prompts):
    return [list(range(len(prompt.split()))) for prompt in prompts]


@pytest.fixture
def data(write):
    return load_prompts(write("a.jsonl", [{"prompt": prompt} for prompt in PROMPTS]))


def test_prompts_within_the_budget_pass_as_they_are(data):
    assert check_lengths(data, words, 3) is data


def test_longer_prompts_are_refused_by_their_places(data, refused):
    message = refused(data, check_lengths, tokenize=words, budget=2)
    assert message.splitlines() == [
        "2 of 4 rows cannot be used:",
        "  a.jsonl:2: prompt has 3 tokens, but only 2 fit",
        "  a.jsonl:4: prompt has 3 tokens, but only 2 fit",
        "Shorten them, raise the budget, or set overlong_prompts: drop to exclude them.",
    ]


def test_dropped_prompts_are_counted_and_named(data):
    kept = check_lengths(data, words, 2, overlong="drop")
    assert kept.dataset["prompt"][:] == ["one", "two"] and kept.places == ("a.jsonl:1", "a.jsonl:3")
    assert (len(kept), kept.dropped, data.dropped) == (2, 2, 0)
    assert kept.notes == ("2 of 4 prompts are excluded because they have more than 2 tokens: a.jsonl:2, a.jsonl:4",)


def test_dropping_twice_adds_up(data):
    once = check_lengths(data, lambda prompts: [[0] * len(prompt) for prompt in prompts], 13, overlong="drop")
    assert check_lengths(once, words, 1, overlong="drop").dropped == 2


def test_data_that_would_be_dropped_whole_are_refused(data, refused):
    message = refused(data, check_lengths, tokenize=lambda prompts: [[0] * 9] * 4, budget=8, overlong="drop")
    assert message.startswith("all 4 prompts have more than 8 tokens")


# ---------------------------------------------------------------------- what the teacher reads


def test_token_counts_may_be_given_themselves(data):
    assert check_lengths(data, [1, 3, 1, 3], 3) is data
    assert check_lengths(data, [1, 3, None, 3], 2, overlong="drop").places == ("a.jsonl:1", "a.jsonl:3")


def test_what_is_counted_is_named(data, refused):
    message = refused(data, check_lengths, tokenize=[300, 5, None, 5], budget=248, what="teacher_prompt")
    assert "1 of 4 rows cannot be used:\n  a.jsonl:1: teacher_prompt has 300 tokens, but only 248 fit\n" in message
    kept = check_lengths(data, [300, 5, None, 5], 248, overlong="drop", what="teacher_prompt")
    assert kept.notes == (
        "1 of 4 prompts are excluded because they have a teacher_prompt of more than 248 tokens: a.jsonl:1",
    )
    message = refused(data, check_lengths, tokenize=[5, 0, 5, 5], budget=248, what="teacher_prompt")
    assert "a.jsonl:2: teacher_prompt has no tokens ('a long prompt')" in message


def test_a_column_is_tokenised_where_it_has_values(write, refused):
    rows = [{"prompt": "one"}, {"prompt": "two", "teacher_prompt": "two, which is 2"}]
    data = load_prompts(write("b.jsonl", rows))
    message = refused(data, check_lengths, tokenize=words, budget=3, what="teacher_prompt")
    assert "b.jsonl:2: teacher_prompt has 4 tokens, but only 3 fit" in message
    assert check_lengths(data, words, 4, what="teacher_prompt") is data


@pytest.mark.parametrize("overlong", ["refuse", "drop"])
def test_prompts_without_tokens_are_refused(data, refused, overlong):
    message = refused(data, check_lengths, tokenize=lambda p: [[], [0], [0], [0]], budget=5, overlong=overlong)
    assert "a.jsonl:1: prompt has no tokens ('one')" in message and "Nothing would predict" in message


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": 5, "overlong": "truncate"}, "overlong_prompts is 'truncate'; choose refuse or drop."),
        ({"budget": 0}, "the budget for prompts is 0 tokens"),
        ({"budget": 5, "tokenize": lambda prompts: [[0]]}, "tokenize returned 1 lists for 4 prompts"),
        ({"budget": 5, "tokenize": [1, 2]}, "2 token counts are given for 4 rows"),
        ({"budget": 5, "what": "teacher_prompt"}, "teacher_prompt is not a column of a.jsonl (it has: prompt)"),
    ],
)
def test_settings_out_of_range_are_refused(data, refused, options, sentence):
    assert sentence in refused(data, check_lengths, **({"tokenize": words} | options))
