"""Readers of JSON, JSON Lines, CSV and Parquet: every row with its place, and nothing skipped but blank lines.

Rows come one after the other as they are asked for, and what follows the last one asked for is not read. Only the text
of a JSON array is in memory as a whole.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..messages import struct_columns
from ..visible import shorten

FIELD_LIMIT = 2**31 - 1
"""Longest CSV field in characters. The `csv` module's own limit of 131,072 is shorter than some teacher responses."""

ROWS_AT_ONCE = 256
"""At most this many rows of a table are Python objects at a time. With 4,096 token ids each they take about 40 MB."""

_SPACE = r"[ \t\n\r]*"
_OPENING, _COMMA = re.compile(rf"{_SPACE}\[{_SPACE}"), re.compile(rf"{_SPACE},{_SPACE}")
_CLOSING, _EMPTY_ARRAY = re.compile(rf"{_SPACE}\]{_SPACE}\Z"), re.compile(rf"{_SPACE}\[{_SPACE}\]")


class Record(NamedTuple):
    """A row as it was read: its `file:line`, its values, and why there are none if it is no row.

    `filled` names the columns of structs, where Arrow gives every row the fields of all rows, null where it has none.
    """

    place: str
    values: dict[str, Any]
    fault: str = ""
    filled: frozenset[str] = frozenset()

    @classmethod
    def of(cls, place: str, value: Any) -> "Record":
        """The record of a parsed JSON value, which must be an object."""
        if isinstance(value, dict):
            return cls(place, value)
        return cls(place, {}, f"the row is not an object ({shorten(value)})")


def reader_of(path: Path) -> Callable[[Path], Iterator[Record]]:
    zipped = path.name.lower().endswith(".gz")
    extension = Path(path.name[:-3] if zipped else path.name).suffix.lower()
    known = TEXT_READERS if zipped else TEXT_READERS | {".parquet": read_parquet}
    if extension not in known:
        raise ValueError(
            f"{path} has an unknown extension ({extension or 'none'}{'.gz' if zipped else ''}). Known are "
            f"{', '.join(TEXT_READERS)} (each with or without .gz) and .parquet: rename or convert the file."
        )
    return known[extension]


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file, `.gz` or not, without a byte-order mark. Each ends with its `\\n`, as it stands there."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                yield _decoded(path, number, line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}). Copy or download it again.") from error
    except MemoryError as error:
        raise ValueError(f"{path} has a line that does not fit into memory. Write one row per line.") from error


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}:{number} is not UTF-8 (byte 0x{error.object[error.start]:02x}). Convert the file first, for "
            f"instance with: iconv -f LATIN1 -t UTF-8 {path.name} > utf8-{path.name}"
        ) from error


def read_json_lines(path: Path) -> Iterator[Record]:
    """One object a line; blank lines are skipped, and counted."""
    for number, line in enumerate(text_lines(path), 1):
        if line.strip():
            yield _json_line(f"{path}:{number}", line.removesuffix("\n"))


class RepeatedKey(ValueError):
    """A JSON object that gives a key twice, of which `json` would take the last in silence."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKey(f"it gives {next(name for name in names if names.count(name) > 1)!r} twice")
    return values


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _json_line(place: str, line: str) -> Record:
    try:
        return Record.of(place, _JSON.decode(line))
    except json.JSONDecodeError as error:
        return Record(place, {}, f"not JSON: {error.msg} at column {error.colno} ({shorten(line)})")
    except RepeatedKey as error:
        return Record(place, {}, f"{error} ({shorten(line)})")
    except RecursionError:
        return Record(place, {}, f"it is nested too deeply to be read ({shorten(line)})")


def read_json(path: Path) -> Iterator[Record]:
    """One array of objects, or JSON Lines under the name `.json`; the first character tells."""
    first = next((line for line in text_lines(path) if line.strip()), "")
    return _json_array(path) if first.lstrip().startswith("[") else read_json_lines(path)


def _json_array(path: Path) -> Iterator[Record]:
    text = "".join(text_lines(path))
    try:
        yield from _array_items(path, text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno} is not JSON: {error.msg} at column {error.colno}. Correct the array there, or "
            "write one object a line."
        ) from error
    except RepeatedKey as error:
        raise ValueError(f"{path} has an object that cannot be read: {error}. Keep one of the two.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be read. Write one object a line.") from error


def _array_items(path: Path, text: str) -> Iterator[Record]:
    """The items of an array, each with the line on which it starts. What `json` would refuse, it is asked to refuse."""
    decode = _JSON.raw_decode
    number, line, end = 0, 1, 0
    if _EMPTY_ARRAY.match(text):
        json.loads(text)
        return
    while not (number and _CLOSING.match(text, end)):
        separator = (_COMMA if number else _OPENING).match(text, end)
        if separator is None:
            json.loads(text)
        assert separator, "what json reads, we read"
        line += text.count("\n", end, separator.end())
        start, number = separator.end(), number + 1
        value, end = decode(text, start)
        yield Record.of(f"{path}:{line} (row {number})", value)
        line += text.count("\n", start, end)


def read_csv(path: Path) -> Iterator[Record]:
    """Rows under a header line, each placed at the line on which it starts. Fields are text, or `None` where empty."""
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(_csv_lines(path), strict=True)
    try:
        header = _csv_header(path, next(reader, []))
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                yield _csv_row(f"{path}:{line}", header, fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num} is not CSV: {error}. Correct the row that ends there.") from error


def _csv_lines(path: Path) -> Iterator[str]:
    """Lines as the `csv` module counts them, which end at a `\\r` alone as well."""
    for line in text_lines(path):
        if "\r" in line:
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _csv_header(path: Path, header: list[str]) -> list[str]:
    if "" in header or len(set(header)) < len(header):
        raise ValueError(
            f"{path}:1 is a header with an empty or repeated column name ({', '.join(map(shorten, header))}). Give "
            "each column a different name."
        )
    return header


def _csv_row(place: str, header: list[str], fields: list[str]) -> Record:
    if len(fields) != len(header):
        return Record(place, {}, f"{len(fields)} of the {len(header)} fields in the header ({shorten(fields)})")
    return Record(place, {name: field or None for name, field in zip(header, fields, strict=True)})


def read_parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file, counted from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .arrow_types import rows_of

    try:
        with pq.ParquetFile(path) as file:
            filled = struct_columns(file.schema_arrow)
            rows = (row for batch in file.iter_batches(batch_size=ROWS_AT_ONCE) for row in rows_of(batch))
            for number, row in enumerate(rows, 1):
                yield Record(f"{path}: row {number}", row, filled=filled)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a complete Parquet file ({error}). Copy or download it again.") from error


TEXT_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
}
