"""What may be added to a plan that has cells already, and what may not change. No torch here."""

from typing import Any

MAY_GROW = ("settings", "methods")
MAY_CHANGE = ("learning_rates", "seeds", "title", "reference")


def changes(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What makes cells of two plans, as plain data, ones that do not belong together; nothing where they do."""
    changed = [name for name in now if name not in (*MAY_GROW, *MAY_CHANGE) and now[name] != earlier.get(name)]
    for field in MAY_GROW:
        shared = now[field].keys() & earlier[field].keys()
        changed += [
            f"{field}.{name}" for name in now[field] if name in shared and now[field][name] != earlier[field][name]
        ]
    return changed
