"""Prompts as messages: text as a user message, and a system prompt in front."""

from collections.abc import Callable
from typing import Any

from .files import Record
from .rows import PROMPTS, form_of


def as_chat(record: Record) -> Record:
    """The record with one user message in place of each prompt that is text. Blank text stays, and is refused later."""
    return _change_prompts(
        record,
        lambda value: [{"role": "user", "content": value}] if form_of(value) == "text" and value.strip() else value,
    )


def with_system_prompt(record: Record, system_prompt: str) -> Record:
    """The record with a system message in front of each prompt."""
    _check_room_for_system_prompt(record)
    message = {"role": "system", "content": system_prompt}
    return _change_prompts(record, lambda value: [message, *value] if form_of(value) == "messages" else value)


def _check_room_for_system_prompt(record: Record) -> None:
    for name in PROMPTS:
        value: Any = record.values.get(name)
        if form_of(value) == "text" and value.strip():
            raise ValueError(
                f"system_prompt is set, but {name} is text in {record.place}, and text cannot have a system message. "
                "Set chat=True, or remove system_prompt."
            )
        if form_of(value) == "messages" and value[0].get("role") in ("system", "developer"):
            raise ValueError(
                f"system_prompt is set, but {name} begins with a {value[0]['role']} message in {record.place}. Remove "
                "system_prompt, or remove that message from the data."
            )


def _change_prompts(record: Record, change: Callable[[Any], Any]) -> Record:
    changed = {name: change(record.values[name]) for name in PROMPTS if name in record.values}
    return record._replace(values=record.values | changed)
