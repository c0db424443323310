"""Messages and tools as rows hold them, and as they were before Arrow stored them. Every layer may import it: it
imports none.
"""

import json
from collections.abc import Sequence
from typing import Any

TOOLS = "tools"
"""The column with the tools of a row's messages, as JSON schemas: a list of them, or the list as JSON text."""
NO_TOOL = ("reset", "get_reward")
"""Methods of an environment that are no tools."""


def read_tools(value: Any) -> list[dict[str, Any]]:
    """The tools in a column: a list of objects, a list of their JSON, or the JSON of a list; [] where there are none.

    Raises:
        ValueError: `not JSON`, or `no list of objects`; whose row it is, the caller knows.

    >>> read_tools('[{"name": "add"}]'), read_tools(['{"name": "add"}']), read_tools(None)
    ([{'name': 'add'}], [{'name': 'add'}], [])
    """
    try:
        tools = json.loads(value) if isinstance(value, str) and value else value
        if isinstance(tools, list):
            tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
    except ValueError:
        raise ValueError("not JSON") from None
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("no list of objects")
    return tools


def struct_columns(schema: Any) -> frozenset[str]:
    """The columns of an Arrow schema that hold structs, by themselves or in lists."""
    return frozenset(field.name for field in schema if "struct<" in str(field.type))


def without_nulls(value: Any) -> Any:
    """What an Arrow struct held before it got the fields of all rows; the content of a message may be null.

    >>> without_nulls([{"role": "assistant", "content": None, "name": None, "tool_calls": [{"x": 1, "y": None}]}])
    [{'role': 'assistant', 'content': None, 'tool_calls': [{'x': 1}]}]
    """
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: without_nulls(item)
        for name, item in value.items()
        if item is not None or (name == "content" and "role" in value)
    }


def is_unanswered(messages: Sequence[dict[str, Any]]) -> bool:
    """Was an episode cut: does it end with calls that no tool answered, or with a reply that nobody continued?

    >>> call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    >>> reply, end = {"role": "tool", "content": "3"}, {"role": "assistant", "content": "It is 3."}
    >>> is_unanswered([call]), is_unanswered([call, reply]), is_unanswered([call, reply, end])
    (True, True, False)
    """
    last = messages[-1]
    return last.get("role") == "tool" or bool(last.get("tool_calls"))
