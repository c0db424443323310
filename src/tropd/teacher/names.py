"""Teachers' names, and the rows that name them. Nothing heavy is imported here."""

from collections.abc import Sequence
from typing import Any

COLUMN = "teacher"
"""The column of the data that names each row's teacher, where there are several."""

Name = str | None
"""A teacher's name; `None` is the only teacher of a run, which needs none and meets every row."""


def why_unknown(value: Any, names: Sequence[str]) -> str | None:
    """What is wrong with the teacher that a row names, to follow its place; `None`: nothing."""
    if isinstance(value, str) and value in names:
        return None
    known = f"the teachers are {', '.join(names)}."
    if value is None:
        return f"names no teacher (its {COLUMN!r} is missing or None); {known}"
    return f"names the teacher {value!r:.60}, which is unknown; {known}"


def rows_by_name(names: Sequence[Name]) -> dict[Name, list[int]]:
    """The numbers of each teacher's rows, in their order.

    >>> rows_by_name(["math", "code", "math"])
    {'math': [0, 2], 'code': [1]}
    """
    rows: dict[Name, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def teacher_phrase(name: Name) -> str:
    """A teacher in a sentence.

    >>> teacher_phrase(None), teacher_phrase("math")
    ('the teacher', "the teacher 'math'")
    """
    return "the teacher" if name is None else f"the teacher {name!r}"


def field_of(name: Name) -> str:
    """How a configuration writes a teacher: the field, or its key in the mapping.

    >>> field_of(None), field_of("math")
    ('teacher', 'teacher.math')
    """
    return "teacher" if name is None else f"teacher.{name}"
