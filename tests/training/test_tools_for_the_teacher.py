"""The teacher is told of the tools whose calls it scores, on every route to its context."""

import logging

import pytest
import trl.trainer.grpo_trainer as host

from odd_tokenizers import TOOL, TOOLS_TEMPLATE, tokenizer
from training import tiny
from training.tiny import build, clone

USER = [{"role": "user", "content": "ab"}]
HINT = [{"role": "user", "content": "ab hint"}]
NO_TOOLS = "{% for m in messages %}{{ m.content }};{% endfor %}"


def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: first
        b: second
    """
    return a + b


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A trainer with a tool whose student calls nothing."""
    monkeypatch.setattr(host, "parse_response", lambda *args, **kwargs: {"role": "assistant", "content": "x"})

    def built(rows=({"prompt": USER},) * 2, template=TOOLS_TEMPLATE, teachers=None, tools=(add,), **settings):
        made = tokenizer()
        made.response_template = {"x": 1}
        student = tiny.llama(0, rows=96)
        teacher = {name: clone(student) for name in teachers} if teachers else clone(student)
        options = {
            "processing_class": made,
            "teacher_processing_class": tokenizer(template=template),
            "tools": list(tools) or None,
        }
        script = tiny.replay(tiny.recorded(8))
        defaults = {"script": script, "trainer_options": options, "max_completion_length": 12}
        return build(tmp_path, student, teacher, "opd", rows=list(rows), **defaults | settings)

    return built


def contexts(trainer):
    trainer.train()
    return [trainer._tokenizer.decode(r.teacher_context) for r in trainer._buffered_inputs[0].rollouts]


@pytest.mark.parametrize(
    ("rows", "settings", "start", "end"),
    [
        ([{"prompt": USER}] * 2, {}, "tools ", "user:ab;assistant:"),
        ([{"prompt": USER, "teacher_prompt": HINT}] * 2, {}, "tools ", "user:ab hint;assistant:"),
        ([{"prompt": USER}] * 2, {"teacher_chat_template": "teacher"}, "tools ", "user:ab;assistant:"),
        ([{"prompt": USER}] * 2, {"teacher_chat_template_kwargs": {"x": 1}}, "tools ", "user:ab;assistant:"),
        ([{"prompt": USER}] * 2, {"teacher_chat_template": "own " + TOOLS_TEMPLATE}, "own tools ", "assistant:"),
        (
            [{"prompt": USER, "teacher": "a"}, {"prompt": USER, "teacher": "b", "teacher_prompt": HINT}],
            {"teachers": ("a", "b"), "teacher_chat_template": {"a": "teacher"}},
            "tools ",
            "assistant:",
        ),
    ],
    ids=["own prompt", "teacher_prompt", "teacher's template", "kwargs", "another template", "several"],
)
def test_the_tools_argument_reaches_the_teacher(built, rows, settings, start, end):
    for text in contexts(built(rows, **settings)):
        assert text.startswith(start) and '"name":"add"' in text.replace(" ", "") and text.endswith(end)


def test_a_template_of_the_teachers_without_tools_is_refused_at_once(built):
    with pytest.raises(ValueError, match=r"renders none, .* \(chat_template.jinja in the model's folder"):
        built(template=NO_TOOLS, teacher_chat_template="teacher")


def test_tools_from_two_places_are_refused(built):
    with pytest.raises(
        ValueError, match=r"has a column 'tools', and the trainer has tools of its own .*remove_columns"
    ):
        built([{"prompt": USER, "tools": [TOOL]}] * 2)


def test_a_column_of_tools_beside_text_is_said_to_have_no_effect(built, caplog):
    with caplog.at_level(logging.WARNING):
        built([{"prompt": "ab", "tools": "hammer"}] * 2, tools=())
    assert "has a column 'tools', which reaches no chat template, as the prompts are text" in caplog.text
