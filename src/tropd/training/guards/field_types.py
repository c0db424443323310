"""What a field of a configuration may hold, by its annotation: the one reader for all fields, ours and the host's.

The host takes what it is given: `True` for a number, text for a number, NaN, a key that is no text; and fails later,
elsewhere, without the field's name, or trains something else. No heavy import here.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from enum import Enum
from functools import partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...suggestions import hint
from ...visible import shorten

_show = partial(shorten, width=100)

INFINITE = frozenset({"max_grad_norm", "outlier_tau", "advantage_floor", "teacher_entropy_tau"})
"""Fields in which infinity says something: no clipping, every token, no token."""

ALSO: dict[str, Any] = {"fsdp": bool | list[str], "scale_rewards": bool}
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
    Callable: "a function",
    NoneType: "None",
}


def kinds_of(annotation: Any) -> set[Any]:
    """The types that an annotation allows: of `list[str] | None`, `list` and `NoneType`."""
    return {get_origin(part) or part for part in _parts(annotation)}


def check_types(settings: Any, choices: Mapping[str, Collection[str]] | None = None) -> None:
    """Refuse a value that is not of its field's type, NaN or infinity, and text that is not one of the choices.

    Fields named in `_VALID_DICT_FIELDS` may be JSON; `choices` is what a field may be that is annotated as text.

    Raises:
        ValueError: with the field, its value, and what it takes.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if name in getattr(settings, "_VALID_DICT_FIELDS", ()):
            value = _mapping_of(name, value)
        check_value(name, value, hints[name], (choices or {}).get(name, ()))


def check_value(name: str, value: Any, annotation: Any, known: Collection[str] = ()) -> None:
    """The same of one value.

    `name` begins the sentence; with dots it is of a part of the field. `known` is what it may be, where it is one of a
    few words.
    """
    field = name.rpartition(".")[2]
    parts = _parts(annotation) + (_parts(ALSO[field]) if field in ALSO else [])
    kinds = {get_origin(part) or part for part in parts}
    known = known or _members(kinds)
    if known and not (value is None and NoneType in kinds) and not (isinstance(value, bool) and bool in kinds):
        _check_choice(name, value, known)
        return
    if Any not in kinds and not _fits(value, parts):
        text = ", and this is text" if _looks_like_a_number(value) else ""
        raise ValueError(f"{name} is {_show(value)}; it takes {_either(parts)}{text}.")
    _check_scalar(name, value, may_be_infinite=field in INFINITE)
    _check_inside(name, value, parts)


def _check_scalar(name: str, value: Any, may_be_infinite: bool) -> None:
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{name} is {_show(value)}, which contains a NUL character. Remove it.")
    if isinstance(value, Integral) and not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"{name} is {_show(value)}; integers are limited to 64 bits.")
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not may_be_infinite)):
        raise ValueError(f"{name} is {value}; it takes a finite number.")


def _check_inside(name: str, value: Any, parts: list[Any]) -> None:
    """The items of a list, and the keys and values of a mapping, as far as the annotation says what they are."""
    if isinstance(value, (list, tuple)):
        inside = next((get_args(part)[0] for part in parts if get_origin(part) is list), Any)
        each = next((get_args(part) for part in parts if _fits_tuple(value, part)), (inside,) * len(value))
        for place, item in enumerate(value):
            check_value(f"{name}[{place}]", item, each[place])
    if isinstance(value, Mapping):
        inside = next((get_args(part)[1] for part in parts if get_origin(part) is dict), Any)
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{name} has the key {_show(key)}; its keys are text.")
            if inside is not Any:
                check_value(f"{name}.{key!r}" if not key.isidentifier() else f"{name}.{key}", item, inside)


def _fits(value: Any, parts: list[Any]) -> bool:
    kinds = {get_origin(part) or part for part in parts}
    if value is None:
        return NoneType in kinds
    if isinstance(value, bool):
        return bool in kinds or Literal in kinds
    if isinstance(value, Integral):
        return bool(kinds & {int, float})
    if isinstance(value, Real):
        return float in kinds
    if isinstance(value, (str, os.PathLike)):
        return str in kinds or Literal in kinds
    if isinstance(value, (list, tuple)):
        return list in kinds or any(_fits_tuple(value, part) for part in parts)
    if isinstance(value, type) and type in kinds:
        return any(get_origin(part) is type and issubclass(value, get_args(part)) for part in parts)
    if isinstance(value, Mapping):
        return dict in kinds
    if dict in kinds and hasattr(value, "to_dict"):  # such as Transformers' AcceleratorConfig
        return not isinstance(value, type)
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))


def _fits_tuple(value: Any, part: Any) -> bool:
    return isinstance(value, tuple) and get_origin(part) is tuple and len(value) == len(get_args(part))


def _mapping_of(name: str, value: Any) -> Any:
    """The mapping that a text is: JSON, or the name of a file where one is allowed."""
    if not isinstance(value, str) or (name in FILES and not value.startswith("{")):
        return value
    try:
        mapping = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is {_show(value)}, which is not a mapping as JSON ({error}).") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"{name} is {_show(value)}; it takes a mapping.")
    return mapping


def _check_choice(name: str, value: Any, known: Collection[str]) -> None:
    given = getattr(value, "value", value)
    if given not in known:
        raise ValueError(f"{name} is {_show(given)}{hint(str(given), known)}; choose one of: {', '.join(known)}.")


def _looks_like_a_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, however nested; else the annotation itself."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for member in get_args(annotation) for part in _parts(member)]
    return [annotation]


def _members(kinds: Iterable[Any]) -> list[str]:
    """The values of the enumeration among the types."""
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    return [str(member.value) for member in found[0]] if found else []


def _either(parts: list[Any]) -> str:
    """The types that are allowed, in words."""
    kinds = {get_origin(part) or part for part in parts}
    words = [word for kind, word in _WORDS.items() if kind in kinds]
    words += [f"a tuple of {len(get_args(part))}" for part in parts if get_origin(part) is tuple]
    words += sorted(kind.__name__ for kind in kinds if kind not in {*_WORDS, tuple, type} and isinstance(kind, type))
    words += ["a class of that kind"] * (type in kinds)
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]
