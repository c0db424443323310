"""Tool calls and tools come out of a file as they were written: nothing added, nothing refused, nothing lost."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset

from tropd.data import find_duplicates, load_prompts

USER = {"role": "user", "content": "one"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"x": {"type": "number"}}}}}
OTHER = {"type": "function", "function": {"name": "say", "parameters": {"properties": {"text": {"type": "string"}}}}}


def call(name, **arguments):
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def result(role="tool"):
    return {"role": role, "name": "add", "content": "2"}


MIXED = [
    {"prompt": [USER, call("add", x=1), result()]},
    {"prompt": [USER, call("say", text="s", x="1", deep={"a": [1, "b", None]}), result()]},
    {"prompt": [USER]},
    {"prompt": [USER, call("none"), {"role": "user", "content": "é", "name": None}]},
]


@pytest.mark.parametrize("column", ["prompt", "teacher_prompt", "teacher_response"])
def test_tool_calls_of_any_arguments_stay_as_written(write, column):
    rows = [row | {column: row["prompt"]} for row in MIXED]
    if column == "teacher_response":
        rows = [{"prompt": [USER], column: [*row["prompt"], {"role": "assistant", "content": "2"}]} for row in MIXED]
    assert load_prompts(write("a.jsonl", rows)).rows(4) == rows
    assert load_prompts(write("a.json", json.dumps(rows))).rows(4) == rows


@pytest.mark.parametrize("role", ["tool", "ipython", "function", "observation", "environment", "tool_response"])
def test_what_a_tool_says_may_have_the_role_of_any_template(write, role):
    rows = [{"prompt": [USER, call("add", x=1), result(role)]}]
    data = load_prompts(write("a.jsonl", rows))
    assert data.rows(1) == rows and find_duplicates(data).groups == ()


@pytest.mark.parametrize(
    "instead",
    [{"tool_calls": [{"function": {"name": "a"}}]}, {"function_call": {"name": "a"}}, {"reasoning_content": "hm"}],
)
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_message_that_says_something_else_needs_no_content(write, instead, content):
    rows = [{"prompt": [USER, {"role": "assistant"} | content | instead, USER]}]
    assert load_prompts(write("a.jsonl", rows)).rows(1) == rows


@pytest.mark.parametrize("more", [{}, {"tool_calls": None}, {"tool_calls": []}, {"name": "x"}])
def test_a_message_that_says_nothing_is_refused(write, refused, more):
    message = refused(write("a.jsonl", [{"prompt": [USER, {"role": "assistant", "content": None} | more, USER]}]))
    assert "message 2 of prompt has no content" in message


@pytest.mark.parametrize("save", ["parquet", "saved"])
@pytest.mark.parametrize("column", ["prompt", "q"])
def test_what_arrow_has_filled_up_is_taken_out_again(write, save, column):
    write("x", "")
    rows = [
        {column: row["prompt"], "tools": [tool], "meta": meta}
        for row, tool, meta in zip(
            [MIXED[0], {"prompt": [USER, call("say", text="s"), result()]}],
            [TOOL, OTHER],
            [{"a": 1}, {"b": 2}],
            strict=True,
        )
    ]
    filled = Dataset.from_list(rows)
    assert filled[1][column][1]["tool_calls"][0]["function"]["arguments"] == {"x": None, "text": "s"}
    if save == "parquet":
        filled.to_parquet("a.parquet")
    else:
        filled.save_to_disk("a.parquet")
    loaded = load_prompts("a.parquet", columns=None if column == "prompt" else {"prompt": column}).rows(2)
    assert [row["prompt"] for row in loaded] == [row[column] for row in rows]
    assert [row["tools"] for row in loaded] == [[TOOL], [OTHER]]
    assert [row["meta"] for row in loaded] == [{"a": 1, "b": None}, {"a": None, "b": 2}], "data of others stay"


@pytest.mark.parametrize("save", ["parquet", "saved"])
def test_json_in_arrow_is_read_as_what_it_is(write, save):
    rows = [{**row, "tools": [TOOL]} for row in MIXED]
    data = load_prompts(write("a.jsonl", rows)).dataset
    (data.to_parquet if save == "parquet" else data.save_to_disk)("b.parquet")
    assert load_prompts("b.parquet").rows(4) == rows


@pytest.mark.parametrize("form", [list, json.dumps, lambda tools: [json.dumps(tool) for tool in tools]])
def test_tools_come_as_a_list_or_as_json(write, form):
    rows = [{"prompt": [USER], "tools": form([TOOL])}, {"prompt": [USER], "tools": form([OTHER, TOOL])}]
    assert load_prompts(write("a.jsonl", rows)).rows(2) == rows


def test_tools_may_be_missing_or_none_and_renamed(write):
    rows = [{"prompt": [USER], "functions": value} for value in ([TOOL], None, [], [OTHER])]
    data = load_prompts(write("a.jsonl", rows), columns={"tools": "functions"})
    assert data.dataset["tools"][:] == [[TOOL], None, [], [OTHER]] and not data.notes


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("add", "tools is not JSON ('add')"),
        ('{"name": "add"}', "tools is no list of objects"),
        (["{"], "tools is not JSON (['{'])"),
        ([1], "tools is no list of objects ([1])"),
        (7, "tools is no list of objects (7)"),
    ],
)
def test_tools_that_no_template_could_render_are_refused(write, refused, value, why):
    message = refused(write("a.jsonl", [{"prompt": [USER], "tools": value}]))
    assert f"a.jsonl:1: {why}" in message and "write the tools' JSON schemas" in message


def test_beside_text_the_column_stays_with_a_note(write):
    data = load_prompts(write("a.jsonl", [{"prompt": "one", "tools": "hammer"}]))
    assert data.rows(1) == [{"prompt": "one", "tools": "hammer"}]
    assert data.notes[0].startswith("there is a column 'tools', but the prompts are text")
    assert not load_prompts("a.jsonl", columns={"prompt": "prompt"}, limit=1).notes[1:]


def test_messages_and_tools_do_not_mix_in_one_column(write, refused):
    rows = [{"prompt": [USER], "tools": [TOOL]}, {"prompt": [USER], "tools": json.dumps([TOOL])}]
    assert "column 'tools' is " in refused(write("a.jsonl", rows))


def test_json_columns_take_their_place_in_arrow(write):
    data = load_prompts(write("a.jsonl", MIXED))
    assert data.dataset.data["prompt"].type == pa.list_(pa.json_())
    assert data.dataset._fingerprint == load_prompts("a.jsonl").dataset._fingerprint
