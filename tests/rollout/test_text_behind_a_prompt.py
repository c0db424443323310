"""A teacher response that is text continues its prompt: no space, no beginning and no end come in between."""

import pytest

from odd_tokenizers import EOS, tokenizer
from tropd.rollout.guidance import response_ids
from tropd.teacher.context import text_ids

KINDS = {
    "first": {"metaspace": "first"},
    "always": {"metaspace": "always"},
    "prepends": {"prepends": True},
    "strips": {"strips": True},
    "appends": {"appends": "<eos>"},
    "both": {"metaspace": "first", "appends": "<eos>"},
    "plain": {},
}
MESSAGES = [{"role": "user", "content": "ab"}]


def behind(made, prompt, text, **template):
    if isinstance(prompt, str):
        ids = text_ids(made, [prompt])[0]
    else:
        ids = made.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    return response_ids(text, prompt, ids, made, [EOS], **template)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "text"), [("a+b=", "cdef"), ("a+b=", " c d"), ("a:", "\nb"), ("a ", "b")])
def test_prompt_and_response_are_the_joined_text(kind, prompt, text):
    made = tokenizer(**KINDS[kind])
    if KINDS[kind].get("strips") and prompt.endswith(" "):
        pytest.skip("the prompt's own end is lost")
    ids = behind(made, prompt, text)
    assert text_ids(made, [prompt])[0] + ids == text_ids(made, [prompt + text])[0]
    assert made.convert_ids_to_tokens(ids)[-1] == text[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_behind_messages_it_is_the_joined_rendering(kind):
    made = tokenizer(**KINDS[kind])
    assert made.convert_ids_to_tokens(behind(made, MESSAGES, "cd")) == ["c", "d"]


@pytest.mark.parametrize("kind", ["first", "prepends", "appends", "plain"])
def test_a_token_across_the_border_is_split_and_gets_no_space(kind):
    made = tokenizer(**KINDS[kind], merges=(("b", "c"),))
    assert made.convert_ids_to_tokens(made("abc", add_special_tokens=False)["input_ids"])[-1] == "bc"
    assert made.convert_ids_to_tokens(behind(made, "ab", "cd")) == ["c", "d"]


def test_what_follows_an_end_of_its_own_is_dropped():
    made = tokenizer(metaspace="first")
    assert made.convert_ids_to_tokens(behind(made, "a=", "b<eos>c")) == ["b"]


def test_a_text_that_cannot_continue_the_prompt_is_told_of(caplog):
    made = tokenizer(strips=True)
    assert made.convert_ids_to_tokens(behind(made, "ab", "  ")) == []
    made = tokenizer(prepends=True, merges=(("b", "c"),))
    made.decode = lambda ids, **_: str(len(ids))  # no other ids read like the joined text
    behind(made, "ab", "cd")
    assert "The teacher_response 'cd' cannot continue the prompt 'ab'" in caplog.text
