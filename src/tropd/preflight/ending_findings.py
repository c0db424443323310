"""What was measured of a pair's endings, in sentences and as lines of the report."""

from typing import Any

from ..teacher.endings import describe_ids
from .measurement import Endings, EndingUse

UNUSED = 0.01
"""Mean probability up to which a declared ending is called unused."""
FEW = 4
"""Fewer responses or places than this say nothing about which ending is used."""


def ending_sentences(endings: Endings, tokenizer: Any) -> list[str]:
    """Who ends with what by measurement, and where that contradicts what is declared; nothing where all agree."""
    said = []
    ours, theirs = endings.student_id, endings.teacher_id
    if ours is not None and theirs is not None and ours != theirs:
        said.append(
            f"By measurement the student ends with {describe_ids([ours], tokenizer)} and the teacher with "
            f"{describe_ids([theirs], tokenizer)}."
        )
    if endings.undeclared:
        said.append(
            f"{describe_ids(endings.undeclared, tokenizer)} is used as an ending, but neither model declares it: "
            "responses do not stop there, and it is scored separately from the other endings."
        )
    for model, num_places in (("student", endings.num_ended), ("teacher", endings.num_at_teachers)):
        unused = [use.token_id for use in endings.uses if num_places >= FEW and _is_unused(use, model)]
        if unused and endings.apart:
            said.append(f"{describe_ids(unused, tokenizer)} is declared by the {model}, which does not end with it.")
    return said


def _is_unused(use: EndingUse, model: str) -> bool:
    declares = any((name == "student") == (model == "student") for name in use.declared_by)
    given = use.student_at_end if model == "student" else use.teacher_at_teachers
    return declares and given is not None and given <= UNUSED


def ending_lines(endings: Endings, tokenizer: Any) -> list[str]:
    """A table of the ids, where more than one is known or used; within 80 columns."""
    if len(endings.uses) < 2:
        return []
    places = f"{f'student ends ({endings.num_ended})':>20}{f'teacher would ({endings.num_at_teachers})':>22}"
    lines = [f"  {'endings: student, teacher':<28}{places}"]
    for use in endings.uses:
        own = f"{_percent(use.student_at_end)} {_percent(use.teacher_at_end)}"
        other = f"{_percent(use.student_at_teachers)} {_percent(use.teacher_at_teachers)}"
        lines.append(f"    {describe_ids([use.token_id], tokenizer):<26}{own:>20}{other:>22}")
    return lines


def _percent(value: float | None) -> str:
    return "   –" if value is None else f"{value:>4.0%}"
