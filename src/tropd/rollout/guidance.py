"""Off-policy guidance: the teacher tokens that a rollout starts from.

A teacher response comes from the data set's `teacher_response` column (text, messages or token ids) or is written by
the teacher when the batch is built. Every rollout of a prompt shares one prefix. Response tokens are handled as ids
and never decoded and tokenised again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..models.chat_templates import render
from ..models.sampling import until_eos

ANCHORS = ("\n", ".", "=", "a", "1")
"""Texts to put before another, to see how it is tokenised in the middle of a text."""

logger = logging.getLogger(__name__)


def response_ids(
    value: Any, prompt: Any, prompt_ids: list[int], tokenizer: Any, eos_ids: Sequence[int], **template
) -> list[int]:
    """Token ids of a teacher response, without its EOS and what follows it.

    Args:
        value: token ids, text, or the assistant's messages.
        prompt: the row's prompt; messages where `value` is messages.
        prompt_ids: the prompt's ids as the student sees them.
        tokenizer: the student's.
        eos_ids: every id that ends a response.
        template: keyword arguments of the chat template, the row's tools among them.

    Raises:
        ValueError: a value of another type, or messages whose rendering does not start with the prompt.
    """
    if isinstance(value, str):
        return until_eos(_behind(prompt, prompt_ids, value, tokenizer, template), eos_ids)
    if isinstance(value, Sequence) and all(isinstance(item, int) for item in value):
        return until_eos(value, eos_ids)
    if isinstance(value, Sequence) and all(isinstance(item, dict) for item in value) and not isinstance(prompt, str):
        rendered = tokenizer.apply_chat_template([*prompt, *value], tokenize=True, return_dict=True, **template)
        ids = list(rendered["input_ids"])
        if ids[: len(prompt_ids)] != prompt_ids:
            raise ValueError(
                "teacher_response is a list of messages, but the chat template does not render the conversation so "
                "that it starts with the rendered prompt. Give the response as text or token ids."
            )
        return until_eos(ids[len(prompt_ids) :], eos_ids)
    raise ValueError(
        f"teacher_response is {value!r:.80}; give text, a list of token ids, or (for conversational prompts) a list "
        "of messages."
    )


def check_response_ids(ids: Sequence[int], row: dict[str, Any], limit: int) -> None:
    """Refuse a row's teacher response with ids that are not below `limit`, the student's rows of the head."""
    if ids and not 0 <= min(ids) <= max(ids) < limit:
        raise ValueError(
            f"the teacher_response of prompt {row['prompt']!r:.60} has token ids from {min(ids)} to {max(ids)}, but "
            f"the student's vocabulary has {limit} entries; use the student's tokenizer."
        )


@dataclass(frozen=True)
class RecordedTurn:
    """One turn of a teacher's episode in the data."""

    ids: list[int]  # without an ending
    ending: int | None  # the id that ends it as it is rendered; `None` where it is given without one
    replies: tuple[str, ...] = ()  # what tools had said before it, over all turns


def recorded_turns(
    value: Any, prompt: Any, prompt_ids: list[int], tokenizer: Any, eos_ids: Sequence[int], **template
) -> list[RecordedTurn]:
    """A teacher's episode: the assistant's messages of a list, each by itself; text and ids are one turn.

    Arguments are those of `response_ids`; among messages there may be tools' replies, and the prompt has what an
    environment said first.

    Raises:
        ValueError: as `response_ids`; or text or ids that continue after their ending.
    """
    if isinstance(value, str) or not value or not isinstance(value[0], dict):
        ids = response_ids(value, prompt, prompt_ids, tokenizer, eos_ids, **template)
        whole = _behind(prompt, prompt_ids, value, tokenizer, template) if isinstance(value, str) else list(value)
        if tokenizer.decode(whole[len(ids) + 1 :], skip_special_tokens=True).strip():
            raise ValueError(
                f"teacher_response is {value!r:.80} and continues after its first ending, so it is an episode of "
                "several turns. Give it as messages: the assistant's, with their tool_calls, and the tools'."
            )
        return [RecordedTurn(ids, None)]
    turns: list[RecordedTurn] = []
    replies: list[str] = []
    for number, message in enumerate(value):
        if message.get("role") == "assistant":
            before = [*prompt, *value[:number]]
            rendered = render(
                tokenizer, before, add_generation_prompt=True, tokenize=True, return_dict=True, **template
            )
            start = prompt_ids if not number else list(rendered["input_ids"])
            whole = render(tokenizer, [*before, message], tokenize=True, return_dict=True, **template)["input_ids"]
            if list(whole[: len(start)]) != list(start):
                raise ValueError(
                    f"teacher_response is a list of messages, but the chat template renders its message {number + 1} "
                    "so that earlier turns change. Use a template that keeps them."
                )
            ids = until_eos(whole[len(start) :], eos_ids)
            ending = next(iter(whole[len(start) + len(ids) :]), None)
            turns.append(RecordedTurn(ids, ending, tuple(replies)))
        elif message.get("role") != "user":
            replies.append(str(message.get("content")))
    return turns


def _behind(prompt: Any, prompt_ids: list[int], text: str, tokenizer: Any, template: dict[str, Any]) -> list[int]:
    """The ids of a text behind a prompt: those of the two as one text, less the prompt's, where that can be.

    A tokenizer may put something before every text, such as SentencePiece's space, which would stand in the middle.
    Where a token of the joined text lies across the border, they are ids with which the whole reads the same.
    """
    as_ids = partial(tokenizer, add_special_tokens=False)
    alone = list(as_ids(text)["input_ids"])
    if not prompt_ids or not text:
        return alone
    is_text, before, start = isinstance(prompt, str), prompt, len(prompt_ids)
    if not is_text:
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **template)
    first, joined = (tokenizer(one, add_special_tokens=is_text)["input_ids"] for one in (before, before + text))
    if prompt_ids == first[:start] == joined[:start]:
        return joined[start : len(joined) - len(first[start:])]  # what is put behind every text is no response
    whole = tokenizer.decode(as_ids(before + text)["input_ids"], skip_special_tokens=True)
    pairs = [(as_ids(anchor)["input_ids"], as_ids(anchor + text)["input_ids"]) for anchor in ANCHORS]
    in_the_middle = [both[len(anchor) :] for anchor, both in pairs if anchor and both[: len(anchor)] == anchor]
    for found in (*in_the_middle, alone):
        if tokenizer.decode([*prompt_ids, *found], skip_special_tokens=True) == whole:
            return found
    logger.warning(
        "The teacher_response %.60r cannot continue the prompt %.60r: the tokenizer reads the two differently as one "
        "text. It is tokenised separately; give token ids if that is wrong.",
        text,
        before,
    )
    return alone
