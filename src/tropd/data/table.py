"""Rows to a `datasets.Dataset`, a chunk at a time. Arrow wants one type in a column, which files need not have."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..visible import shorten
from .arrow_types import as_array, as_json_array, as_type, common_type
from .files import Record
from .rows import OURS, form_of

if TYPE_CHECKING:
    from datasets import Dataset


class GrowingTable:
    """A table that takes records a chunk at a time, so that few of them are Python objects at once.

    A key that a row lacks is `None` there. A column whose values have types that do not go together (a number here,
    text there) is given up at the row where that shows.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._misfits: dict[str, str] = {}
        self._rows = 0

    def add(self, records: Sequence[Record]) -> None:
        for name in dict.fromkeys(name for record in records for name in record.values):
            self._columns.setdefault(name, [pa.nulls(self._rows)] if self._rows else [])
        for name, chunks in self._columns.items():
            if name not in self._misfits:
                values = [record.values.get(name) for record in records]
                self._columns[name] = _extended(name, chunks, values) or self._give_up(name, chunks, values, records)
        self._rows += len(records)

    def _give_up(self, name: str, chunks: list[Any], values: list[Any], records: Sequence[Record]) -> list[Any]:
        row = _first_misfit(name, chunks, values)
        why = (
            "has no type that Arrow supports (mixed types, a number beyond 64 bits, or half a character)"
            if _array(name, [values[row]]) is None
            else "does not match the types of earlier rows"
        )
        self._misfits[name] = f"column {name!r} is {shorten(values[row])} in {records[row].place}, which {why}"
        return []

    def dataset(self) -> tuple["Dataset", list[str]]:
        """The data set of all records, and a note for each column that it had to leave out."""
        from datasets import Dataset

        names = sorted(self._columns, key=lambda name: OURS.index(name) if name in OURS else len(OURS))
        for name in names:
            if name in OURS and name in self._misfits:
                raise ValueError(f"{self._misfits[name]}. Give it the same fields and types in every row.")
        notes = [
            f"{self._misfits[name]}. The column is excluded; to keep it, give it one type, or JSON as text."
            for name in names
            if name in self._misfits
        ]
        table = pa.table({name: pa.chunked_array(self._columns[name]) for name in names if name not in self._misfits})
        return Dataset(table, fingerprint=_fingerprint(table)), notes


def _array(name: str, values: list[Any]) -> Any:
    """The values of a column as Arrow has them, messages and tools as JSON; `None` where they have no common type."""
    if name in OURS and any(form_of(value) == "messages" for value in values):
        return as_json_array(values)
    return as_array(values)


def _extended(name: str, chunks: list[Any], values: list[Any]) -> list[Any] | None:
    """The chunks with the values behind them, all of one type, or `None` where there is no such type."""
    array = _array(name, values)
    kind = common_type(chunks[0].type, array.type) if chunks and array is not None else None
    if array is None or (chunks and kind is None):
        return None
    try:
        if chunks and chunks[0].type == kind:
            return [*chunks, as_type(array, kind)]
        return [as_type(chunk, kind or array.type) for chunk in (*chunks, array)]
    except pa.ArrowInvalid:  # a whole number that float64 cannot hold
        return None


def _first_misfit(name: str, chunks: list[Any], values: list[Any]) -> int:
    """Index of the first value that has no common type with those before it, found by bisection."""
    fits, fails = 0, len(values)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if _extended(name, chunks, values[:middle]) is None:
            fails = middle
        else:
            fits = middle
    return fails - 1


def _fingerprint(table: Any) -> str:
    """A hash of the content. The one that `datasets` would make copies the whole table first."""
    from datasets.fingerprint import Hasher

    hasher = Hasher()
    for name, column in zip(table.column_names, table.columns, strict=True):
        hasher.update(name)
        for chunk in column.chunks:
            hasher.update(chunk)
    return hasher.hexdigest()
