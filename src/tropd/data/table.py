"""Rows to a `datasets.Dataset`. Arrow wants one type in a column, which files need not have."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .files import Record
from .refusals import shortened
from .rows import OURS

if TYPE_CHECKING:
    from datasets import Dataset


def to_dataset(records: Sequence[Record]) -> tuple["Dataset", list[str]]:
    """The data set of the records, and a note for each column that it had to leave out.

    A key that a row lacks is `None` there. A column of ours must fit; another one whose values have types that do not
    go together (a number here, text there) is left out, and the note says at which row.

    Raises:
        ValueError: a column of ours that does not fit, with the row.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    names = dict.fromkeys(name for record in records for name in record.values)
    columns, notes = {}, []
    for name in sorted(names, key=lambda name: OURS.index(name) if name in OURS else len(OURS)):
        values = [record.values.get(name) for record in records]
        array = _array(values)
        if array is not None:
            columns[name] = array
            continue
        misfit = _misfit(name, records, values)
        if name in OURS:
            raise ValueError(f"{misfit}. Give it the same fields and types in every row.")
        notes.append(f"{misfit}. The column is left out; give it one type, or JSON as text, to keep it.")
    return Dataset(pa.table(columns)), notes


def _array(values: list[Any]) -> Any:
    """The values as Arrow has them, or `None` where they have no common type."""
    import pyarrow as pa  # type: ignore[import-untyped]

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None


def _misfit(name: str, records: Sequence[Record], values: list[Any]) -> str:
    row = _first_misfit(values)
    where = f"column {name!r} is {shortened(values[row])} in {records[row].place}, which "
    if _array([values[row]]) is None:
        return where + "has no type that Arrow knows (mixed types, a number beyond 64 bits, or half a character)"
    return where + "does not go with the types of the rows before it"


def _first_misfit(values: list[Any]) -> int:
    """Index of the first value that has no common type with those before it, found by bisection."""
    fits, fails = 0, len(values)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if _array(values[:middle]) is None:
            fails = middle
        else:
            fits = middle
    return fails - 1
