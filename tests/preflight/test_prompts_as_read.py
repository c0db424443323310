"""`tropd check` says what becomes of a tokenizer's ending, of tools and of tokens that only the student has."""

import json

import pytest
from transformers import GenerationConfig, LlamaConfig

from odd_tokenizers import EOS, TOOL, tokenizer
from tropd.preflight.tokens import ModelFiles, compare_pair
from tropd.run.context import tokenize

CHAT = [{"prompt": [{"role": "user", "content": "ab"}]}]
TEXT = [{"prompt": "ab="}, {"prompt": "c="}]
WITH_TOOLS = [row | {"tools": json.dumps([TOOL])} for row in CHAT]
NO_TOOLS = "{% for m in messages %}{{ m.content }};{% endfor %}"


def files(made, rows=128):
    return ModelFiles("model", made, LlamaConfig(vocab_size=rows), GenerationConfig(eos_token_id=EOS))


def found(student, rows, teacher=None, **settings):
    findings = compare_pair(student, teacher or student, rows, max_completion_length=10, **settings)
    return {(finding.subject, finding.level): finding.sentence for finding in findings}


def test_an_ending_that_is_left_out_is_said():
    said = found(files(tokenizer(appends="<eos>", template=None)), TEXT)
    assert "appends '<eos>' to every text" in said["end of prompts", "note"]
    assert ("end of prompts", "warning") not in said and ("teacher's view", "ok") in said


def test_an_ending_of_the_text_itself_is_warned_of():
    said = found(files(tokenizer(template=None)), [{"prompt": "ab=<eos>"}, *TEXT])
    assert "1 of 3 prompts end with '<eos>'" in said["end of prompts", "warning"]
    assert ("end of prompts", "note") not in said


def test_tools_count_among_the_tokens_of_a_prompt():
    made = files(tokenizer())
    own, other = (tokenize(made.tokenizer, [CHAT[0]["prompt"]], {}, [tools]) for tools in (None, [TOOL]))
    assert len(other[0]) > len(own[0])
    findings = compare_pair(made, made, WITH_TOOLS, max_completion_length=1)
    said = [finding.sentence for finding in findings if finding.subject.endswith("context")]
    assert len(said) == 2
    assert all(f"The longest prompt has {len(other[0])} tokens" in sentence for sentence in said)


@pytest.mark.parametrize("template", ["student", "teacher"])
def test_tools_that_a_template_would_lose_are_refused(template):
    knows, knows_not = files(tokenizer()), files(tokenizer(template=NO_TOOLS))
    pairs = [(knows_not, knows), (knows_not, knows_not)] + ([(knows, knows_not)] if template == "teacher" else [])
    for student, teacher in pairs:
        said = found(student, WITH_TOOLS, teacher, teacher_chat_template=template)
        assert "renders none" in said["tools", "refusal"]
    said = found(knows, WITH_TOOLS, teacher_chat_template=template)
    assert ("tools", "refusal") not in said and said["tools", "ok"] == "The prompts tell both models of the tools."
    assert "refuses these prompts" in found(knows, WITH_TOOLS, knows_not)["teacher's view", "note"]


def test_a_padding_token_more_is_a_note():
    student = files(tokenizer(extra=("[PAD]",), pad_token="[PAD]"), rows=64)
    said = found(student, TEXT, files(tokenizer(), rows=63))
    assert "'[PAD]' (63)" in said["vocabulary", "note"] and ("vocabulary", "refusal") not in said
