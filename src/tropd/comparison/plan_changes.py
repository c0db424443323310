"""What may be added to a plan that has cells already, and what may not change. No torch here."""

import json
from collections.abc import Iterator
from typing import Any

MAY_GROW = ("settings", "methods")
ABSENT = object()
"""Not there, which is another thing than null."""
MAY_CHANGE = ("learning_rates", "seeds", "title", "reference")


def changes(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What makes cells of two plans, as plain data, ones that do not belong together; nothing where they do.

    >>> changes({"max_length": 16, "settings": {}, "methods": {}}, {"max_length": 32, "settings": {}, "methods": {}})
    ['max_length (16, now 32)']
    """
    found = [
        words
        for name in dict.fromkeys((*earlier, *now))
        if name not in (*MAY_GROW, *MAY_CHANGE)
        for words in differences(name, earlier.get(name, ABSENT), now.get(name, ABSENT))
    ]
    for field in MAY_GROW:
        for name in now[field]:
            if name in earlier[field]:
                found += differences(f"{field}.{name}", earlier[field][name], now[field][name])
    return found


def differences(name: str, earlier: Any, now: Any) -> Iterator[str]:
    """In words, field by field, so that only what differs is named."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*earlier, *now)):
            yield from differences(f"{name}.{key}", earlier.get(key, ABSENT), now.get(key, ABSENT))
    elif earlier != now:
        yield f"{name} ({_shown(earlier)}, now {_shown(now)})"


def _shown(value: Any) -> str:
    return "not set" if value is ABSENT else json.dumps(value, ensure_ascii=False)
