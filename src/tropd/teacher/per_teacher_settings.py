"""Settings that each of several teachers may have for itself: a mapping from the teachers' names."""

import copy
import re
from collections.abc import Mapping
from typing import Any

from .names import Name
from .served.address import join_replicas

FIELDS = (
    "teacher_model_init_kwargs",
    "teacher_chat_template",
    "teacher_chat_template_kwargs",
    "teacher_model_name",
    "teacher_tokenizer",
)
"""Fields of `TrOPDConfig` that take one value for all teachers, or one for each name."""

TEXTS = {"teacher_chat_template": "student", "teacher_model_name": None, "teacher_tokenizer": None}
"""Those that are text, where a mapping can only be one by names, with what a name has that is left out."""

NAME = re.compile(r"[\w.-]+")


def teachers_by_name(teacher: Any) -> dict[Name, Any]:
    """The teachers by name, of one teacher or of a mapping; one teacher has the name `None`.

    >>> teachers_by_name("path/to/teacher")
    {None: 'path/to/teacher'}

    Raises:
        ValueError: a list of anything but replicas of one served teacher.
    """
    by_name = teacher if isinstance(teacher, Mapping) else {None: teacher}
    return {name: join_replicas(model) for name, model in by_name.items()}


def check_names(teachers: Any) -> None:
    """Refuse a mapping of teachers with invalid names or values.

    Raises:
        ValueError: with the name, and what to type.
    """
    if not isinstance(teachers, Mapping):
        return
    if not teachers:
        raise ValueError("teacher is an empty mapping; give a name and a model for each: {math: path, code: path}.")
    for name, model in teachers.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"teacher has the name {name!r}, which becomes part of metric names; use letters, digits, '_', '-' and "
                "'.'."
            )
        if model is None or model == "":
            raise ValueError(
                f"teacher names {name!r} without a model; give its folder, its Hub name, or a loaded model."
            )


def check_settings(args: Any, teachers: Mapping[Name, Any]) -> None:
    """Refuse settings that name unknown teachers.

    Raises:
        ValueError: with the field and the names there are.
    """
    for field in FIELDS:
        for name in teachers:
            _own_value(field, getattr(args, field), name, teachers)


def args_of(args: Any, name: Name, teachers: Mapping[Name, Any]) -> Any:
    """`args` with one teacher's own value in each of `FIELDS`; where there is one teacher, `args` itself."""
    if name is None:
        return args
    own = copy.copy(args)
    for field in FIELDS:
        setattr(own, field, _own_value(field, getattr(args, field), name, teachers))
    return own


def _own_value(field: str, value: Any, name: Name, teachers: Mapping[Name, Any]) -> Any:
    """One teacher's value: the mapping's where its keys are names of teachers, else the one for all."""
    if not isinstance(value, Mapping) or not value:
        return value
    by_name = [key for key in value if key in teachers]
    if not by_name and field not in TEXTS:
        return value
    others = [key for key in value if key not in teachers]
    if others:
        known = ", ".join(str(known) for known in teachers if known is not None)
        raise ValueError(
            f"{field} has {', '.join(map(repr, others))}, which names no teacher "
            f"({f'they are {known}' if known else 'there is one, without a name'}). Give one value for all of them, or "
            "one for each name."
        )
    return value.get(name, TEXTS.get(field))


def distinct_names(args: Any, teachers: Mapping[Name, Any]) -> list[Name]:
    """The names of teachers that are loaded: of those that are one model, loaded alike, the first."""
    loaded: dict[Any, Name] = {}
    for name, model in teachers.items():
        loaded.setdefault(loading_key(args_of(args, name, teachers), model), name)
    return list(loaded.values())


def loading_key(args: Any, model: Any) -> Any:
    """Equal for two teachers of which one copy is enough."""
    which = (args.teacher_model_init_kwargs, args.teacher_model_name, args.teacher_tokenizer)
    return model if isinstance(model, str) else id(model), str(which)


def of_teacher(given: Any, name: Name) -> Any:
    """One teacher's part of an argument that may be a mapping from names, such as its tokenizer."""
    return given.get(name) if isinstance(given, Mapping) else given
