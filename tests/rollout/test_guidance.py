"""Where a teacher prefix comes from, how long it is, and how it is joined to what the student writes."""

import pytest

from training.tiny import BOS, EOS, ids, tokenizer
from tropd.objective.schedules import prefix_length
from tropd.rollout.guidance import response_ids

CHAT = [{"role": "user", "content": "ab"}]
ANSWER = [{"role": "assistant", "content": "xy+z"}]


def as_ids(value, prompt="ab=", prompt_ids=(), eos_ids=(EOS,), **template):
    return response_ids(value, prompt, list(prompt_ids), tokenizer(), eos_ids, **template)


def chat_ids(messages, **options):
    return tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=True, **options)[
        "input_ids"
    ]


def test_text_messages_and_ids_of_one_response_are_the_same_ids():
    expected = ids("xy+z")
    assert as_ids("xy+z") == expected
    assert as_ids(expected) == expected
    assert as_ids(ANSWER, CHAT, chat_ids(CHAT)) == expected


def test_ids_are_kept_even_where_their_text_would_be_tokenised_otherwise():
    apart = [*ids("a"), *ids("b")]
    assert ids(tokenizer().decode(apart)) == ids("ab") != apart
    assert as_ids(apart) == apart


def test_text_gets_no_special_tokens_in_front():
    adding = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, bos_token="<bos>", eos_token="<eos>")
    assert BOS not in response_ids("xy", "ab=", [], adding, [EOS])


@pytest.mark.parametrize("value", [[7, 8, EOS], [7, 8, EOS, 9, EOS], [7, 8]])
def test_the_first_eos_and_what_follows_it_are_dropped(value):
    assert as_ids(value) == [7, 8]


def test_every_id_that_ends_a_response_counts_as_its_end():
    assert as_ids([7, 8, 33, 9], eos_ids=(EOS, 33)) == [7, 8]


def test_an_empty_response_is_an_empty_prefix():
    assert as_ids([]) == as_ids("") == []


def test_messages_are_rendered_with_the_chat_options_of_the_prompt():
    thinking = {"chat_template": tokenizer().chat_template.replace("{{ message['role'][0] }}", "{{ role_mark }}")}
    options = {**thinking, "role_mark": "a"}
    assert as_ids(ANSWER, CHAT, chat_ids(CHAT, **options), **options) == ids("xy+z")


def test_messages_whose_rendering_does_not_continue_the_prompt_are_refused():
    with pytest.raises(ValueError, match="does not render the conversation so that it starts with the rendered prompt"):
        as_ids(ANSWER, CHAT, chat_ids(CHAT, enable_thinking=True))


@pytest.mark.parametrize("value", [7, {"a": 1}, ["text"], [1.5]])
def test_a_value_of_another_type_is_refused_and_shown(value):
    with pytest.raises(ValueError, match=r"teacher_response is .*give text, a list of token ids, or"):
        as_ids(value)


def test_messages_for_a_plain_prompt_are_refused():
    with pytest.raises(ValueError, match="for conversational prompts"):
        as_ids(ANSWER, "ab=")


def test_a_prefix_leaves_the_minimum_tail_of_response_and_budget():
    settings = {"reading": "cap", "fraction": 1.0, "max_length": 6}
    assert prefix_length(response_length=4, min_tail=1, **settings) == 3
    assert prefix_length(response_length=4, min_tail=3, **settings) == 1
    assert prefix_length(response_length=9, min_tail=2, **settings) == 4
    assert [prefix_length(response_length=length, min_tail=1, **settings) for length in (1, 0)] == [0, 0]


def test_the_two_readings_of_the_schedule_differ_on_short_responses():
    half = {"fraction": 0.5, "max_length": 100, "min_tail": 1}
    assert prefix_length("cap", response_length=10, **half) == 9
    assert prefix_length("share", response_length=10, **half) == 5
