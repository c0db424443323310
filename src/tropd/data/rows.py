"""What a row must be: the forms of prompts and teacher responses, and what is wrong with a value."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..messages import TOOLS, read_tools
from ..suggestions import did_you_mean
from ..visible import shorten
from .files import Record
from .refusals import BadRow

PROMPTS = ("prompt", "teacher_prompt")
FORMED = ("prompt", "teacher_response", "teacher_prompt")
"""The columns that have one of several forms."""
OURS = (*FORMED, TOOLS)
"""The columns that are read; the others are passed to the reward functions."""
TEACHER = "teacher"
"""The column that names each row's teacher, read where there are several."""

ROLES = ("system", "developer", "user", "assistant", "tool")
ROLES_OF_SOME = (
    *("function", "ipython", "observation", "environment"),
    *("tool_call", "tool_response", "available_tools", "documents"),
)
"""Other roles that the chat templates of some families know; each template decides what becomes of them."""
INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""A message that holds one of these needs no content."""
MAX_TOKEN_ID = 2**31 - 1

_SURROGATE = re.compile("[\ud800-\udfff]")


def form_of(value: Any) -> str:
    """What a value is, by its type alone.

    >>> [form_of(v) for v in ("x", [{"role": "user", "content": "x"}], [3, 4], 1.5)]
    ['text', 'messages', 'token ids', 'float']
    """
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "messages"
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return "token ids"
    return "empty list" if value == [] else type(value).__name__


FirstForms = dict[str, tuple[str, str]]
"""The form of each column of ours, and the place that set it."""


def bad_rows(
    records: Iterable[Record], first_of_form: FirstForms, teachers: Sequence[str] | None = None
) -> list[BadRow]:
    """Every row that cannot be used, with all that is wrong with it. Values stand under our column names.

    `first_of_form` is empty at first; handed on from chunk to chunk, it remembers what the earlier ones held.
    `teachers` are the names that a row has to choose from, where there are several.
    """
    found = []
    for record in records:
        faults = [record.fault] if record.fault else _faults(record.values, teachers)
        faults = faults or _changes_of_form(record, first_of_form)
        if faults:
            found.append(BadRow(record.place, "; ".join(faults)))
    return found


def _faults(row: dict[str, Any], teachers: Sequence[str] | None) -> list[str]:
    faults = [prompt_fault("prompt", row.get("prompt"))]
    if row.get("teacher_response") is not None:
        faults.append(response_fault(row["teacher_response"], row.get("prompt")))
    if row.get("teacher_prompt") is not None:
        faults.append(prompt_fault("teacher_prompt", row["teacher_prompt"]))
    if form_of(row.get("prompt")) == "messages":
        faults.append(tools_fault(row.get(TOOLS)))
    if teachers is not None:
        faults.append(teacher_fault(row.get(TEACHER), teachers))
    return [fault for fault in faults if fault]


def _changes_of_form(record: Record, first_of_form: FirstForms) -> list[str]:
    """Faults of a row that is right by itself: Arrow wants one form throughout a column."""
    faults = []
    for name in FORMED:
        value = record.values.get(name)
        if value is None:
            continue
        form, place = first_of_form.setdefault(name, (form_of(value), record.place))
        if form != form_of(value):
            faults.append(f"{name} changes its form to {form_of(value)}; it is {form} in {place} ({shorten(value)})")
    return faults


def prompt_fault(name: str, value: Any) -> str:
    """What is wrong with a `prompt` or `teacher_prompt`, or nothing."""
    if value is None:
        return f"{name} is missing or null"
    form = form_of(value)
    if form == "text":
        return text_fault(name, value) or ("" if value.strip() else f"{name} is empty ({shorten(value)})")
    if form != "messages":
        return f"{name} is neither text nor a list of messages, but {form} ({shorten(value)})"
    fault = messages_fault(name, value)
    if not fault and value[-1]["role"] == "assistant":
        return f"the last message of {name} is from the assistant, so there is nothing to answer ({shorten(value)})"
    if not fault and not any((message.get("content") or "").strip() for message in value):
        return f"the messages of {name} are empty ({shorten(value)})"
    return fault


def teacher_fault(value: Any, teachers: Sequence[str]) -> str:
    """What is wrong with the name of a row's teacher, or nothing.

    >>> teacher_fault("maths", ["math", "code"])
    "teacher is 'maths', which is not one of the teachers math, code. Did you mean 'math'?"
    """
    known = f"the teachers {', '.join(teachers)}"
    if value is None:
        return f"teacher is missing or null; name one of {known}"
    if isinstance(value, str) and value in teachers:
        return ""
    return f"teacher is {shorten(value)}, which is not one of {known}.{did_you_mean(str(value), teachers)}"


def response_fault(value: Any, prompt: Any) -> str:
    """What is wrong with a `teacher_response`, or nothing."""
    form = form_of(value)
    if value in ("", []):
        return f"teacher_response has no tokens ({shorten(value)}): use null where there is none"
    if form == "text":
        return text_fault("teacher_response", value)
    if form == "token ids":
        wrong = [token for token in value if not 0 <= token <= MAX_TOKEN_ID]
        return f"teacher_response holds {wrong[0]}, which is not a token id" if wrong else ""
    if form != "messages":
        return f"teacher_response is neither text nor messages nor token ids, but {form} ({shorten(value)})"
    if form_of(prompt) == "text":
        return f"teacher_response is a list of messages, but prompt is text ({shorten(prompt)}); set chat=True"
    fault = messages_fault("teacher_response", value)
    said = (message for message in value if message["role"] == "assistant")
    if not fault and not any(message.get("content") or _says_otherwise(message) for message in said):
        return f"teacher_response has no tokens from the assistant ({shorten(value)})"
    return fault


def messages_fault(name: str, messages: Sequence[dict[str, Any]]) -> str:
    """What is wrong with the first bad message; empty if nothing is."""
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        where = f"message {number} of {name}"
        if role is None or (content is None and not _says_otherwise(message)):
            return f"{where} has no {'role' if role is None else 'content'} ({shorten(message)})"
        if role not in (*ROLES, *ROLES_OF_SOME):
            known = f"{', '.join(ROLES)}, and of some templates {', '.join(ROLES_OF_SOME)}"
            return f"{where} has the role {shorten(role)}; roles are {known}"
        if content is None:
            continue
        if not isinstance(content, str):
            return f"the content of {where} is not text ({shorten(content)})"
        if fault := text_fault(f"the content of {where}", content):
            return fault
    return ""


def _says_otherwise(message: dict[str, Any]) -> bool:
    """Does a message say something without content, such as a tool call?"""
    return any(message.get(name) for name in INSTEAD_OF_CONTENT)


def tools_fault(value: Any) -> str:
    """What is wrong with the `tools` of a row whose prompt is messages, or nothing.

    >>> tools_fault('[{"type": "function", "function": {"name": "add"}}]'), tools_fault(None)
    ('', '')
    >>> tools_fault("add")
    "tools is not JSON ('add'); write the tools' JSON schemas, as a list or as JSON text"
    """
    try:
        read_tools(value)
    except ValueError as error:
        return f"tools is {error} ({shorten(value)}); write the tools' JSON schemas, as a list or as JSON text"
    return ""


def text_fault(name: str, text: str) -> str:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot: what is left of an emoji that was cut in two."""
    half = _SURROGATE.search(text)
    return f"{name} contains half a character (\\u{ord(half[0]):04x}), an emoji cut in two" if half else ""
