"""What a field of a configuration may hold, by its annotation: the one reader for all fields, ours and the host's.

The host takes what it is given: `True` for a number, text for a number, NaN, a key that is no text; and fails later,
elsewhere, without the field's name, or trains something else. No heavy import here.
"""

import difflib
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from enum import Enum
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

INFINITE = frozenset({"max_grad_norm", "outlier_tau", "advantage_floor", "teacher_entropy_tau"})
"""Fields in which infinity says something: no clipping, every token, no token."""

ALSO: dict[str, tuple[type, ...]] = {"fsdp": (bool, list), "scale_rewards": (bool,)}
"""What the host takes, or makes of a field, beside its annotation."""

FILES = ("accelerator_config", "fsdp_config", "deepspeed")
"""Mappings that may be in a file, whose name is given."""

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    NoneType: "None",
}


def kinds_of(annotation: Any) -> set[Any]:
    """The types that an annotation allows: of `list[str] | None`, `list` and `NoneType`."""
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*(kinds_of(part) for part in get_args(annotation)))
    return {get_origin(annotation) or annotation}


def check_types(settings: Any, choices: Mapping[str, Collection[str]]) -> None:
    """Refuse a value that is not of its field's type, a number that is none, text that is not one of the choices.

    Args:
        settings: a dataclass.
        choices: what a field may be that is annotated as text.

    Raises:
        ValueError: with the field, its value, and what it takes.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value, annotation = getattr(settings, field.name), hints[field.name]
        kinds = kinds_of(annotation) | set(ALSO.get(field.name, ()))
        known = choices.get(field.name) or _members(kinds)
        if known and not (isinstance(value, bool) and bool in kinds):
            _check_choice(field.name, value, known)
            continue
        if not _fits(value, kinds):
            raise ValueError(f"{field.name} is {_shown(value)}; it takes {_either(kinds)}.")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{field.name} is {_shown(value)}, which has a NUL character in it. Remove that.")
        _check_numbers(field.name, value)
        _check_items(field.name, value, annotation)
        if field.name in getattr(settings, "_VALID_DICT_FIELDS", ()):
            value = _mapping_of(field.name, value)
        if isinstance(value, Mapping):
            _check_mapping(field.name, value, annotation)


def _fits(value: Any, kinds: set[Any]) -> bool:
    if value is None:
        return NoneType in kinds
    if isinstance(value, bool):
        return bool in kinds or Literal in kinds
    if isinstance(value, Integral):
        return bool(kinds & {int, float})
    if isinstance(value, Real):
        return float in kinds
    if isinstance(value, str):
        return str in kinds
    if isinstance(value, os.PathLike):
        return str in kinds
    if isinstance(value, (list, tuple)):
        return list in kinds
    if isinstance(value, Mapping):
        return dict in kinds
    if dict in kinds and hasattr(value, "to_dict"):  # such as Transformers' AcceleratorConfig
        return not isinstance(value, type)
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))


def _check_numbers(name: str, value: Any) -> None:
    if isinstance(value, Integral) and not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"{name} is {_shown(value)}; whole numbers have 64 bits here.")
    if isinstance(value, Real) and (math.isnan(value) or (math.isinf(value) and name not in INFINITE)):
        raise ValueError(f"{name} is {value}; it takes a finite number.")


def _check_items(name: str, value: Any, annotation: Any) -> None:
    """Each item of a list, which is read from YAML and JSON without a look at its type."""
    if not isinstance(value, (list, tuple)):
        return
    lists = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is list]
    kinds = kinds_of(get_args(lists[0])[0]) if lists else {str}
    for item in value:
        if known := _members(kinds):
            _check_choice(name, item, known)
        elif not _fits(item, kinds):
            raise ValueError(f"{name} has {_shown(item)}; it takes a list, each of which is {_either(kinds)}.")
        _check_numbers(name, item)


def _mapping_of(name: str, value: Any) -> Any:
    """The mapping that text stands for, which is JSON, or the name of a file where one can be given."""
    if not isinstance(value, str) or (name in FILES and not value.startswith("{")):
        return value
    try:
        mapping = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is {_shown(value)}, which is not a mapping as JSON ({error}).") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"{name} is {_shown(value)}; it takes a mapping.")
    return mapping


def _check_mapping(name: str, value: Mapping[Any, Any], annotation: Any) -> None:
    """Keys are text, and values what the annotation says of them, if it does."""
    mappings = [get_args(part) for part in (annotation, *get_args(annotation)) if get_origin(part) is dict]
    kinds = kinds_of(mappings[0][1]) if mappings else {Any}
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f"{name} has the key {_shown(key)}; its keys are text.")
        if Any not in kinds and not _fits(item, kinds):
            raise ValueError(f"{name} has {key!r}: {_shown(item)}; each of its values is {_either(kinds)}.")


def _check_choice(name: str, value: Any, known: Collection[str]) -> None:
    given = getattr(value, "value", value)
    if given not in known:
        close = difflib.get_close_matches(str(given), known, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{name} is {_shown(given)}{hint}; choose one of: {', '.join(known)}.")


def _members(kinds: Iterable[Any]) -> list[str]:
    """The values of the enumeration among the types."""
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    return [str(member.value) for member in found[0]] if found else []


def _either(kinds: Iterable[Any]) -> str:
    words = [word for kind, word in _WORDS.items() if kind in kinds]
    words += sorted(kind.__name__ for kind in kinds if kind not in _WORDS and isinstance(kind, type))
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


def _shown(value: Any) -> str:
    """The value as Python writes it, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:100] + "…"
