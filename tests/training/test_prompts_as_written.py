"""The student reads its prompts as the data have them: their tools, and nothing that a tokenizer or Arrow adds."""

import json

import pytest
import trl.trainer.grpo_trainer as host
from datasets import Dataset
from transformers import ProcessorMixin

from odd_tokenizers import BOS, CALL, EOS, TOOL, TOOLS_TEMPLATE, tokenizer
from training import tiny
from training.test_other_checkpoints import that_could_look
from training.tiny import build, clone

USER = [{"role": "user", "content": "ab"}]
OTHER = {"type": "function", "function": {"name": "say", "parameters": {"type": "object", "properties": {"t": {}}}}}


def made(directory, rows, made=None, method="opd", **settings):
    made = tokenizer() if made is None else made
    options = {"processing_class": made, "teacher_processing_class": settings.pop("teachers", made)}
    options |= settings.pop("options", {})
    student = tiny.llama(0, rows=96)
    defaults = {"script": tiny.replay(tiny.recorded(8)), "trainer_options": options, "max_completion_length": 12}
    return build(directory, student, clone(student), method, rows=rows, **defaults | settings)


def rollouts(trainer):
    trainer.train()
    return trainer._buffered_inputs[0].rollouts


def texts(trainer):
    """What student and teacher read before each response, spaces aside."""
    decode = trainer._tokenizer.decode
    read = [(decode(r.prompt_ids), decode(r.teacher_context)) for r in rollouts(trainer)]
    return [tuple(text.replace(" ", "") for text in pair) for pair in read]


# ---------------------------------------------------------------------- text


@pytest.mark.parametrize("template", ["student", "teacher"])
def test_no_end_stands_between_a_text_and_its_response(tmp_path, template):
    odd = tokenizer(appends="<eos>")
    trainer = made(tmp_path, [{"prompt": "ab="}, {"prompt": "c<eos>"}], odd, teacher_chat_template=template)
    bare = odd("ab=", add_special_tokens=False)["input_ids"]
    for rollout in rollouts(trainer)[:4]:
        assert rollout.prompt_ids == rollout.teacher_context == [BOS, *bare]
    for rollout in rollouts(trainer)[4:]:
        assert rollout.prompt_ids == rollout.teacher_context == [BOS, 6, EOS], "its own end is the text's"


def test_a_guided_rollout_goes_on_in_the_text(tmp_path):
    odd = tokenizer(metaspace="first", appends="<eos>")
    rows = [{"prompt": "a+b=", "teacher_response": "cdefgh"}, {"prompt": "x+y=", "teacher_response": " z"}]
    trainer = made(tmp_path, rows, odd, "tropd", guidance_schedule="constant", guidance_length="share")
    for rollout in rollouts(trainer):
        start = rollout.response[: rollout.prefix_length]
        joined = odd(rows[rollout.row // 4]["prompt"] + rows[rollout.row // 4]["teacher_response"])["input_ids"]
        assert start and [*rollout.prompt_ids, *start] == joined[: len(rollout.prompt_ids) + len(start)]


# ---------------------------------------------------------------------- tools


@pytest.mark.parametrize("form", [list, json.dumps])
@pytest.mark.parametrize(
    "settings", [{}, {"teacher_chat_template": "teacher"}, {"teacher_chat_template": TOOLS_TEMPLATE}], ids=str
)
def test_the_tools_of_each_row_reach_both_models(tmp_path, form, settings):
    rows = [{"prompt": USER, "tools": form([TOOL])}, {"prompt": USER, "tools": form([OTHER, TOOL])}]
    for (ours, theirs), names in zip(texts(made(tmp_path, rows, **settings)), ["add"] * 4 + ["say"] * 4, strict=True):
        assert ours == theirs and ours.startswith("tools") and f'"name":"{names}"' in ours
        assert ours.endswith("user:ab;assistant:") and "null" not in ours


def test_a_teacher_prompt_is_read_with_the_tools(tmp_path):
    rows = [{"prompt": USER, "tools": [TOOL], "teacher_prompt": [{"role": "user", "content": "abc"}]}] * 2
    for ours, theirs in texts(made(tmp_path, rows)):
        assert ours.endswith("user:ab;assistant:") and theirs == ours.replace("user:ab", "user:abc")


def test_a_row_without_tools_beside_one_with(tmp_path):
    rows = [{"prompt": USER, "tools": json.dumps([TOOL])}, {"prompt": USER, "tools": None}]
    read = texts(made(tmp_path, rows))
    assert read[0][0].startswith("tools") and read[4] == ("user:ab;assistant:",) * 2


@pytest.mark.parametrize(
    "response",
    [[{"role": "assistant", "content": None, "tool_calls": [CALL]}], '{"name": "add", "arguments": {"a": 1}}'],
)
def test_a_response_that_calls_a_tool_goes_on_behind_the_tools(tmp_path, response):
    rows = [{"prompt": USER, "tools": json.dumps([TOOL]), "teacher_response": response}] * 2
    guided = {"guidance_schedule": "constant", "guidance_length": "share", "max_completion_length": 60}
    trainer = made(tmp_path, rows, method="tropd", **guided)
    for rollout in rollouts(trainer):
        written = trainer._tokenizer.decode(rollout.response[: rollout.prefix_length])
        assert written.startswith('{"name": "add", "arguments": {"a": 1}')


def test_a_template_without_tools_is_refused(tmp_path):
    plain = tokenizer(template="{% for m in messages %}{{ m.content }};{% endfor %}")
    with pytest.raises(ValueError, match=r"renders none, .* or remove the tools"):
        made(tmp_path, [{"prompt": USER, "tools": [TOOL]}] * 2, plain)


def test_what_arrow_adds_to_tool_calls_is_not_read(tmp_path):
    def asked(name, **arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        said = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"prompt": [*USER, said, {"role": "tool", "content": "1"}], "teacher_prompt": [*USER, said, *USER]}

    rows = [asked("add", x=1), asked("say", t="s")]
    trainer = made(tmp_path, rows, teacher_chat_template="teacher")
    assert Dataset.from_list(rows)[1]["prompt"][1]["tool_calls"][0]["function"]["arguments"] == {"x": None, "t": "s"}
    for number, pair in enumerate(texts(trainer)):
        call = ('{"name":"add","arguments":{"x":1}}', '{"name":"say","arguments":{"t":"s"}}')[number // 4]
        assert all(f"assistant:{call}<eos>;" in text for text in pair)


@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_a_call_without_content_is_read(tmp_path, content):
    said = {"role": "assistant"} | content | {"tool_calls": [CALL]}
    rows = [{"prompt": [*USER, said, {"role": role, "content": "1"}]} for role in ("tool", "ipython")]
    data = Dataset.from_list(rows, on_mixed_types="use_json")
    for number, (ours, theirs) in enumerate(texts(made(tmp_path, data))):
        assert ours == theirs
        assert (
            f'assistant:{{"name":"add","arguments":{{"a":1}}}}<eos>;{rows[number // 4]["prompt"][2]["role"]}:1;' in ours
        )


# ---------------------------------------------------------------------- environments


class Room:
    """An environment with one thing to do."""

    def reset(self, **row) -> str:
        """Begin."""
        return " seen"

    def look(self) -> str:
        """Look around."""
        return "x"

    def get_reward(self) -> float:
        """Nothing is asked for."""
        return 0.0


@pytest.mark.parametrize("settings", [{}, {"teacher_chat_template": "teacher"}], ids=str)
@pytest.mark.parametrize("hint", [False, True])
def test_what_an_environment_says_first_reaches_the_teacher(tmp_path, monkeypatch, settings, hint):
    monkeypatch.setattr(host, "parse_response", lambda *args, **kwargs: {"role": "assistant", "content": "x"})
    odd = tokenizer()
    odd.response_template = {"x": 1}
    row = {"prompt": USER} | ({"teacher_prompt": [{"role": "user", "content": "hint"}]} if hint else {})
    trainer = made(tmp_path, [row] * 2, odd, options={"environment_factory": Room}, **settings)
    for ours, theirs in texts(trainer):
        assert '"name":"look"' in ours and ours.endswith("user:abseen;assistant:")
        assert '"name":"look"' in theirs and theirs.endswith(f"user:{'hint' if hint else 'ab'}seen;assistant:")


# ---------------------------------------------------------------------- a student that could look


class Processor(ProcessorMixin):
    """As much of a processor as has a tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer, self.chat_template = tokenizer, "{{ messages[0].content }}"


@pytest.mark.parametrize("given", ["folder", "loaded", "processor"])
def test_a_student_that_could_look_learns_on_text(tmp_path, teacher, given):
    student = that_could_look()
    student.save_pretrained(tmp_path / "student")
    tiny.tokenizer().save_pretrained(tmp_path / "student")
    student = type(student).from_pretrained(tmp_path / "student")
    before = tiny.weights_of(student)
    tokens = {"processing_class": Processor(tiny.tokenizer()) if given == "processor" else None}
    trainer = build(
        tmp_path / "out",
        str(tmp_path / "student") if given == "folder" else student,
        clone(teacher),
        "opd",
        script=tiny.replay(tiny.recorded(8)),
        trainer_options=tokens | {"teacher_processing_class": tiny.tokenizer()},
    )
    trainer.train()
    moved = {name for name, weight in tiny.weights_of(trainer.model).items() if not weight.equal(before[name])}
    assert moved and not [name for name in moved if "vision" in name or "projector" in name]
    assert all("language_model" in name or "lm_head" in name for name in moved)


# ---------------------------------------------------------------------- a comparison


@pytest.mark.parametrize(("column", "value"), [("tools", [TOOL]), ("teacher_prompt", USER)])
def test_a_comparison_refuses_what_it_would_not_hand_on(column, value):
    from tropd.comparison.cell.texts import _check_read

    _check_read("a.jsonl", [{"prompt": USER}, {"prompt": "ab", "tools": "hammer"}])
    with pytest.raises(ValueError, match=f"^a.jsonl has a column '{column}', which a comparison does not pass on"):
        _check_read("a.jsonl", [{"prompt": USER}, {"prompt": USER, column: value}])
