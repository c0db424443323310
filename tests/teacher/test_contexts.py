"""What a model reads before a response: nothing that a tokenizer puts behind a text, and everything of its tools."""

import json
import logging

import pytest

from odd_tokenizers import BOS, EOS, TOOL, TOOLS_TEMPLATE, tokenizer
from tropd.generation import read_prompts
from tropd.teacher import context
from tropd.teacher.context import TeacherContexts, ToolsLost, text_ids, tools_of

NO_TOOLS = "{% for m in messages %}{{ m.content }};{% endfor %}"
USER = [{"role": "user", "content": "ab"}]


def own(text, **kind):
    return tokenizer(**kind)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("kind", "begins"),
    [
        ({"appends": "<eos>"}, [BOS]),
        ({"appends": "<eos>", "begins": ""}, []),
        ({"appends": "[SEP]", "begins": "[CLS] ", "extra": ("[CLS]", "[SEP]")}, None),
        ({"appends": "<eos> <eos>"}, [BOS]),
        ({"appends": "<eos>", "metaspace": "first"}, [BOS]),
        ({}, [BOS]),
    ],
)
@pytest.mark.parametrize("texts", [["abc="], ["abc=", "b="], ["a", "b"]])
def test_what_a_tokenizer_puts_behind_a_text_is_left_out(kind, begins, texts):
    made = tokenizer(**kind)
    first = made("a")["input_ids"][:1] if begins is None else begins
    assert text_ids(made, texts) == [[*first, *own(text, **kind)] for text in texts]


def test_an_ending_that_the_text_itself_holds_stays():
    for kind in ({"appends": "<eos>"}, {}):
        assert text_ids(tokenizer(**kind), ["abc=<eos>", "<bos>a"]) == [
            [BOS, *own("abc="), EOS],
            [BOS, BOS, *own("a")],
        ]


def test_it_is_said_once(caplog):
    context._say_dropped.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            text_ids(tokenizer(appends="<eos>"), ["a", "b"])
    assert [record.message for record in caplog.records] == [
        "The tokenizer ends every text with '<eos>'. It is removed from prompts, since a response follows them."
    ]


@pytest.mark.parametrize("column", ["prompt", "teacher_prompt"])
def test_teacher_and_generate_read_text_without_an_ending(column):
    made, row = tokenizer(appends="<eos>"), {"prompt": "?", column: "abc="}
    expected = [[BOS, *own("abc=")]]
    contexts = TeacherContexts(made, made, "teacher", as_student=False)
    assert contexts.of([row], [[7]]) == expected
    assert read_prompts([row], ["a:1"], made).contexts == expected


# ---------------------------------------------------------------------- tools

FORMS = [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]]


@pytest.mark.parametrize("tools", FORMS)
@pytest.mark.parametrize(
    "template",
    ["student", "teacher", "{% if tools %}{{ tools[0].function.name }}{% endif %};{{ messages[0].content }}"],
)
@pytest.mark.parametrize("column", ["prompt", "teacher_prompt"])
def test_the_tools_of_a_row_are_in_every_context(tools, template, column):
    made = tokenizer()
    row = {"prompt": [{"role": "user", "content": "?"}], column: USER, "tools": tools}
    (ids,) = TeacherContexts(made, tokenizer(), template, as_student=False).of([row], [[7]])
    start = "add;ab" if "{" in template else 'tools {"name":"add"'
    assert made.decode(ids).replace(" ", "").startswith(start.replace(" ", ""))


@pytest.mark.parametrize("tools", FORMS)
def test_generate_shows_the_tools(tools):
    made = tokenizer()
    (ids,) = read_prompts([{"prompt": USER, "tools": tools}], ["a:1"], made).contexts
    assert ids == own(made.apply_chat_template(USER, tools=[TOOL], tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("tools", [None, [], ""])
def test_a_row_without_tools_is_rendered_without(tools):
    made = tokenizer()
    contexts = TeacherContexts(made, as_student=False)
    assert contexts.of([{"prompt": USER, "tools": tools}], [[]]) == contexts.of([{"prompt": USER}], [[]])


def test_the_hosts_tools_and_template_are_the_teachers_too():
    def add(a: int) -> int:
        """Add.

        Args:
            a: one
        """
        return a

    made = tokenizer(template=NO_TOOLS)
    contexts = TeacherContexts(made, as_student=False, tools=lambda row: [add], student_template=TOOLS_TEMPLATE)
    assert "add" in made.decode(contexts.of([{"prompt": USER}], [[]])[0])


def test_a_template_that_renders_no_tools_is_refused():
    made, row = tokenizer(template=NO_TOOLS), {"prompt": USER, "tools": [TOOL]}
    with pytest.raises(
        ToolsLost, match=r"the chat template of .* renders none, so .* or remove the tools \(the data's"
    ):
        TeacherContexts(made, as_student=False).of([row], [[]])
    with pytest.raises(ToolsLost, match="renders none"):
        read_prompts([row], ["a:1"], made)


@pytest.mark.parametrize("tools", ["add", '{"a": 1}', [1], [["a"]], 3, ["x"]])
def test_tools_that_are_none_are_refused_with_their_value(tools):
    with pytest.raises(ValueError, match=r"tools is .* write the tools' JSON schemas"):
        tools_of({"prompt": USER, "tools": tools})


def test_beside_text_the_column_is_data_like_any_other():
    assert tools_of({"prompt": "ab", "tools": "hammer"}) is None
