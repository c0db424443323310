"""Every bad row is named by its place with what is wrong, and a good one passes."""

import pytest

from tropd.data import load_prompts

USER = {"role": "user", "content": "one"}
ASSISTANT = {"role": "assistant", "content": "1"}


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (None, "prompt is missing or null"),
        ("", "prompt is empty ('')"),
        (" \n", "prompt is empty (' \\n')"),
        (3, "prompt is neither text nor a list of messages, but int (3)"),
        ([], "prompt is neither text nor a list of messages, but empty list ([])"),
        ([1, 2], "prompt is neither text nor a list of messages, but token ids"),
        (USER, "prompt is neither text nor a list of messages, but dict"),
        ([{"content": "one"}], "message 1 of prompt has no role"),
        ([USER, {"role": "user"}], "message 2 of prompt has no content"),
        (
            [{"role": "human", "content": "one"}],
            "message 1 of prompt has the role 'human'; roles are system, developer",
        ),
        ([{"role": "user", "content": ["one"]}], "the content of message 1 of prompt is not text"),
        ([USER, ASSISTANT], "the last message of prompt is from the assistant"),
        ([{"role": "user", "content": " "}], "the messages of prompt are empty"),
        ("\ud83d", "prompt contains half a character (\\ud83d)"),
    ],
)
def test_a_bad_prompt_is_named(write, refused, prompt, why):
    assert f"a.jsonl:1: {why}" in refused(write("a.jsonl", [{"prompt": prompt}]))


def test_a_prompt_that_a_row_lacks_is_missing(write, refused):
    assert "a.jsonl:2: prompt is missing or null" in refused(write("a.jsonl", [{"prompt": "one"}, {"answer": 1}]))


@pytest.mark.parametrize(
    ("prompt", "response", "why"),
    [
        ("one", "", "teacher_response has no tokens ('')"),
        ("one", [], "teacher_response has no tokens ([])"),
        ([USER], [{"role": "assistant", "content": ""}], "teacher_response has no tokens from the assistant"),
        ([USER], [USER], "teacher_response has no tokens from the assistant"),
        ([USER], [{"role": "assistant"}], "message 1 of teacher_response has no content"),
        ("one", [ASSISTANT], "teacher_response is a list of messages, but prompt is text ('one'); set chat=True"),
        ("one", 3.5, "teacher_response is neither text nor messages nor token ids, but float (3.5)"),
        ("one", ["1", 2], "teacher_response is neither text nor messages nor token ids, but list"),
        ("one", [True, False], "teacher_response is neither text nor messages nor token ids, but list"),
        ("one", [3, -1], "teacher_response holds -1, which is not a token id"),
        ("one", "\udc00", "teacher_response contains half a character"),
    ],
)
def test_a_bad_teacher_response_is_named(write, refused, prompt, response, why):
    message = refused(write("a.jsonl", [{"prompt": prompt, "teacher_response": response}]))
    assert f"a.jsonl:1: {why}" in message


@pytest.mark.parametrize("value", ["", [1], [USER, ASSISTANT], 7])
def test_a_bad_teacher_prompt_is_named(write, refused, value):
    assert "teacher_prompt" in refused(write("a.jsonl", [{"prompt": "one", "teacher_prompt": value}]))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "one", "teacher_response": "1", "teacher_prompt": "1, one"},
        {"prompt": "one", "teacher_response": [3, 4], "teacher_prompt": [USER]},
        {
            "prompt": [USER],
            "teacher_response": [ASSISTANT],
            "teacher_prompt": [{"role": "system", "content": ""}, USER],
        },
        {"prompt": [USER, ASSISTANT, USER], "teacher_response": None, "teacher_prompt": None},
    ],
)
def test_a_good_row_passes_as_it_is(write, row):
    assert load_prompts(write("a.jsonl", [row])).rows(1) == [row]


@pytest.mark.parametrize(
    ("name", "first", "other", "form"),
    [
        ("prompt", "one", [USER], "messages; it is text in a.jsonl:1"),
        ("prompt", [USER], "one", "text; it is messages in a.jsonl:1"),
        ("teacher_response", "1", [3, 4], "token ids; it is text in a.jsonl:1"),
        ("teacher_prompt", "one", [USER], "messages; it is text in a.jsonl:1"),
    ],
)
def test_a_row_that_changes_the_form_of_a_column_is_named(write, refused, name, first, other, form):
    rows = [{"prompt": "one", name: first}, {"prompt": "one"}, {"prompt": "one", name: other}]
    if name == "prompt":
        del rows[1]
    message = refused(write("a.jsonl", rows))
    assert f"a.jsonl:{len(rows)}: {name} changes its form to {form}" in message


def test_all_that_is_wrong_with_a_row_stands_in_one_line(write, refused):
    message = refused(write("a.jsonl", [{"prompt": "", "teacher_response": "", "teacher_prompt": ""}]))
    line = message.splitlines()[1]
    assert line == (
        "  a.jsonl:1: prompt is empty (''); teacher_response has no tokens (''): use null where there is none; "
        "teacher_prompt is empty ('')"
    )


def test_ten_bad_rows_are_shown_and_the_rest_counted(write, refused):
    lines = refused(write("a.jsonl", [{"prompt": "one"}, *[{"prompt": ""}] * 14])).splitlines()
    assert lines[0] == "14 of 15 rows cannot be used:"
    assert lines[1] == "  a.jsonl:2: prompt is empty ('')" and lines[10] == "  a.jsonl:11: prompt is empty ('')"
    assert lines[11] == "  … and 4 more"
    assert lines[12].startswith("Correct these rows, or remove them.") and len(lines) == 13


def test_a_long_value_is_shown_shortened(write, refused):
    lines = refused(write("a.jsonl", [{"prompt": ["x" * 500]}])).splitlines()
    assert len(lines[1]) < 160 and "xxx…)" in lines[1]


def test_bad_rows_of_all_files_are_in_one_error(write, refused):
    message = refused([write("a.jsonl", [{"prompt": ""}]), write("b.csv", "prompt,answer\n,1\n")])
    assert "a.jsonl:1: prompt is empty" in message and "b.csv:2: prompt is missing or null" in message
