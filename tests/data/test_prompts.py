"""Columns are renamed, text is wrapped, and what the settings or the columns cannot do is said."""

import pytest

from tropd.data import load_prompts

USER = {"role": "user", "content": "one"}
SYSTEM = {"role": "system", "content": "Think."}


# ---------------------------------------------------------------------- columns


def test_columns_are_renamed_and_the_others_kept(write):
    name = write("a.jsonl", [{"question": "one", "solution": "1", "answer": 1}])
    data = load_prompts(name, columns={"prompt": "question", "teacher_response": "solution"})
    assert data.rows(1) == [{"prompt": "one", "teacher_response": "1", "answer": 1}]
    assert data.dataset.column_names == ["prompt", "teacher_response", "answer"]


def test_one_column_may_be_read_twice(write):
    name = write("a.jsonl", [{"prompt": "one"}])
    assert load_prompts(name, columns={"teacher_prompt": "prompt"}).rows(1) == [
        {"prompt": "one", "teacher_prompt": "one"}
    ]


def test_columns_may_be_exchanged(write):
    name = write("a.jsonl", [{"prompt": "1", "teacher_response": "one"}])
    columns = {"prompt": "teacher_response", "teacher_response": "prompt"}
    data = load_prompts(name, columns=columns)
    assert data.rows(1) == [{"prompt": "one", "teacher_response": "1"}] and not data.notes


def test_a_column_whose_name_is_taken_is_left_out_with_a_note(write):
    data = load_prompts(write("a.jsonl", [{"prompt": "Q: one", "question": "one"}]), columns={"prompt": "question"})
    assert data.rows(1) == [{"prompt": "one"}]
    assert data.notes == ("a.jsonl has a column 'prompt', which is ignored: 'question' is read instead.",)


def test_a_missing_prompt_is_answered_with_what_data_sets_call_it(write, refused):
    message = refused(write("a.jsonl", [{"id": 1, "question": "one"}]))
    assert message == (
        "a.jsonl has no column 'prompt' (it has: id, question). Did you mean 'question'? "
        "Set columns={'prompt': 'question'} with the right column name; on the command line: --columns.prompt question."
    )


def test_a_column_that_is_already_ours_is_not_suggested_for_another(write, refused):
    message = refused(write("a.jsonl", [{"q": "one", "teacher_prompt": "1, one"}]))
    assert message.endswith(
        "(it has: q, teacher_prompt). Set columns={'prompt': '…'} with the right column name; on the command line: "
        "--columns.prompt …."
    )


def test_a_missing_column_is_answered_with_the_nearest(write, refused):
    name = write("a.jsonl", [{"prompt": "one", "solution": "1"}])
    message = refused(name, columns={"teacher_response": "solutoin"})
    assert "no column 'solutoin'" in message and "Set columns={'teacher_response': 'solution'}" in message


def test_the_file_that_lacks_a_column_is_named(write, refused):
    names = [write("a.jsonl", [{"question": "one"}]), write("b.jsonl", [{"problem": "two"}])]
    assert refused(names, columns={"prompt": "question"}).startswith("b.jsonl has no column 'question'")


def test_a_name_that_is_no_column_of_ours_is_refused(write, refused):
    message = refused(write("a.jsonl", [{"prompt": "one"}]), columns={"teacher_respons": "solution"})
    assert "columns renames to 'teacher_respons'" in message and "Did you mean 'teacher_response'?" in message


def test_keys_that_a_row_lacks_are_none(write):
    data = load_prompts(write("a.jsonl", [{"prompt": "one", "a": 1}, {"prompt": "two", "b": {"c": [2]}}]))
    assert data.rows(2) == [{"prompt": "one", "a": 1, "b": None}, {"prompt": "two", "a": None, "b": {"c": [2]}}]


def test_a_column_of_mixed_types_is_left_out_with_a_note_that_names_the_row(write):
    rows = [{"prompt": "one", "answer": 1}] * 5 + [{"prompt": "one", "answer": "1"}, {"prompt": "one", "answer": []}]
    data = load_prompts(write("a.jsonl", rows))
    assert data.dataset.column_names == ["prompt"]
    assert data.notes == (
        "column 'answer' is '1' in a.jsonl:6, which does not match the types of earlier rows. The column is excluded; "
        "to keep it, give it one type, or JSON as text.",
    )


@pytest.mark.parametrize("value", [[1, "a"], 2**70, "\ud83d"])
def test_a_value_that_arrow_cannot_hold_is_named(write, value):
    data = load_prompts(write("a.jsonl", [{"prompt": "one"}, {"prompt": "one", "extra": value}]))
    assert "in a.jsonl:2, which has no type that Arrow supports" in data.notes[0]


@pytest.mark.parametrize("value", [2**70, float("nan"), 1.2345678901234568e16])
def test_a_number_that_a_message_cannot_keep_is_refused(write, refused, value):
    rows = [{"prompt": [USER | {"weight": 1}]}, {"prompt": [USER | {"weight": value}]}]
    message = refused(write("a.jsonl", rows))
    assert message.startswith("column 'prompt' is") and "in a.jsonl:2" in message and "beyond 64 bits" in message


def test_true_does_not_go_with_fractions_in_any_order(write):
    for name, values in (("a.jsonl", [0.5, True]), ("b.jsonl", [True, 0.5])):
        data = load_prompts(write(name, [{"prompt": "one", "score": value} for value in values]))
        assert f"column 'score' is {values[1]} in {name}:2" in data.notes[0]


def test_what_generate_writes_for_people_is_left_out_silently(write):
    row = {"prompt": "one", "teacher_response": [3, 4], "teacher_response_text": "1!", "teacher_response_ended": True}
    name = write("a.jsonl", [row])
    data = load_prompts(name)
    assert data.rows(1) == [{"prompt": "one", "teacher_response": [3, 4], "teacher_response_ended": True}]
    assert data.notes == ()
    data = load_prompts(name, columns={"teacher_response": "teacher_response_text"})
    assert data.rows(1)[0]["teacher_response"] == "1!"
    assert [note.split("'")[1] for note in data.notes] == ["teacher_response"]


# ---------------------------------------------------------------------- columns that may be absent

RENAMED = {"prompt": "question", "teacher_response": "solution"}


def test_a_column_that_may_be_absent_is_absent(write):
    name = write("a.jsonl", [{"question": "one", "answer": 1}])
    data = load_prompts(name, columns=RENAMED, optional_columns=True)
    assert data.rows(1) == [{"prompt": "one", "answer": 1}] and not data.notes


def test_a_column_that_may_be_absent_is_read_where_it_is(write):
    names = [write("a.jsonl", [{"question": "one"}]), write("b.jsonl", [{"question": "two", "solution": "2"}])]
    data = load_prompts(names, columns=RENAMED, optional_columns=True)
    assert data.dataset["teacher_response"][:] == [None, "2"]


def test_the_prompt_may_not_be_absent(write, refused):
    message = refused(write("a.jsonl", [{"prompt": "one"}]), columns=RENAMED, optional_columns=True)
    assert message.startswith("a.jsonl has no column 'question' (it has: prompt).")


def test_a_column_of_its_own_does_not_stand_in_for_one_that_is_absent(write):
    name = write("a.jsonl", [{"question": "one", "teacher_response": [1]}])
    data = load_prompts(name, columns=RENAMED, optional_columns=True)
    assert data.dataset.column_names == ["prompt"]
    assert data.notes == (
        "a.jsonl has a column 'teacher_response', which is ignored: 'solution' is read instead, but is missing.",
    )


# ---------------------------------------------------------------------- chat, system prompt, limit


def test_chat_wraps_text_prompts_and_leaves_messages(write):
    rows = [{"prompt": "one", "teacher_prompt": "1, one"}, {"prompt": [USER], "teacher_prompt": None}]
    data = load_prompts(write("a.jsonl", rows), chat=True)
    assert data.dataset["prompt"][:] == [[USER], [USER]]
    assert data.dataset["teacher_prompt"][:] == [[USER | {"content": "1, one"}], None]


def test_chat_does_not_hide_an_empty_prompt(write, refused):
    assert "prompt is empty" in refused(write("a.jsonl", [{"prompt": " "}]), chat=True)


def test_a_system_prompt_stands_before_messages(write):
    name = write("a.jsonl", [{"prompt": [USER], "teacher_prompt": [USER]}])
    assert load_prompts(name, system_prompt="Think.").rows(1) == [
        {"prompt": [SYSTEM, USER], "teacher_prompt": [SYSTEM, USER]}
    ]
    name = write("b.jsonl", [{"prompt": "one"}])
    assert load_prompts(name, chat=True, system_prompt="Think.").rows(1) == [{"prompt": [SYSTEM, USER]}]


def test_a_system_prompt_before_text_is_refused(write, refused):
    message = refused(write("a.jsonl", [{"prompt": "one"}]), system_prompt="Think.")
    assert "prompt is text in a.jsonl:1" in message and "Set chat=True" in message


def test_a_second_system_prompt_is_refused(write, refused):
    message = refused(write("a.jsonl", [{"prompt": [SYSTEM, USER]}]), system_prompt="Think.")
    assert "begins with a system message in a.jsonl:1" in message


def test_an_empty_system_prompt_is_refused(write, refused):
    assert "system_prompt is ' '" in refused(write("a.jsonl", [{"prompt": [USER]}]), system_prompt=" ")


def test_a_limit_takes_the_first_rows_across_files(write):
    names = [write("a.jsonl", [{"prompt": "one"}, {"prompt": "two"}]), write("b.jsonl", [{"prompt": "three"}] * 5)]
    assert load_prompts(names, limit=3).places == ("a.jsonl:1", "a.jsonl:2", "b.jsonl:1")
    assert len(load_prompts(names, limit=1)) == 1
    assert len(load_prompts(names, limit=99)) == 7


def test_what_follows_the_limit_is_not_read(write):
    name = write("a.jsonl", b'{"prompt": "one"}\n{"prompt": "caf\xe9"}\n')
    assert len(load_prompts(name, limit=1)) == 1


def test_a_limit_below_one_is_refused(write, refused):
    assert "limit is 0; at least one row" in refused(write("a.jsonl", [{"prompt": "one"}]), limit=0)
