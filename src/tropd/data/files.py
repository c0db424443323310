"""Readers of JSON, JSON Lines, CSV and Parquet: every row with its place, and nothing skipped but blank lines."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .refusals import shortened

FIELD_LIMIT = 2**31 - 1
"""Longest CSV field in characters. The `csv` module's own limit of 131,072 is shorter than some teacher responses."""

_SEPARATOR = re.compile(r"[\s,]*")


class Record(NamedTuple):
    """A row as it was read: its `file:line`, its values, and why there are none if it is no row."""

    place: str
    values: dict[str, Any]
    fault: str = ""

    @classmethod
    def of(cls, place: str, value: Any) -> "Record":
        """The record of a parsed JSON value, which must be an object."""
        if isinstance(value, dict):
            return cls(place, value)
        return cls(place, {}, f"the row is not an object ({shortened(value)})")


def reader_of(path: Path) -> Callable[[Path], Iterator[Record]]:
    """The reader for a file's name.

    Raises:
        ValueError: an unknown extension; the sentence names the known ones.
    """
    zipped = path.name.lower().endswith(".gz")
    extension = Path(path.name[:-3] if zipped else path.name).suffix.lower()
    known = TEXT_READERS if zipped else TEXT_READERS | {".parquet": read_parquet}
    if extension not in known:
        raise ValueError(
            f"{path} has an extension that is not known ({extension or 'none'}{'.gz' if zipped else ''}). Known are "
            f"{', '.join(TEXT_READERS)} (each with or without .gz behind it) and .parquet: rename or convert the file."
        )
    return known[extension]


def read_text(path: Path) -> str:
    """The text of a file, `.gz` or not, without a byte-order mark.

    Raises:
        ValueError: not UTF-8 (with the line), or a damaged archive.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}). Copy or download it again.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{line} is not UTF-8 (byte 0x{error.object[error.start]:02x}). Convert the file first, for "
            f"instance with: iconv -f LATIN1 -t UTF-8 {path.name} > utf8-{path.name}"
        ) from error


def read_json_lines(path: Path) -> Iterator[Record]:
    """One object a line; blank lines are skipped, and counted."""
    return _json_lines(path, read_text(path))


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json_line(f"{path}:{number}", line)


def _json_line(place: str, line: str) -> Record:
    try:
        return Record.of(place, json.loads(line))
    except json.JSONDecodeError as error:
        return Record(place, {}, f"not JSON: {error.msg} at column {error.colno} ({shortened(line)})")


def read_json(path: Path) -> Iterator[Record]:
    """One array of objects, or JSON Lines under the name `.json`; the first character tells.

    Raises:
        ValueError: an array that is not JSON, with the line.
    """
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return _json_lines(path, text)
    try:
        total = len(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno} is not JSON: {error.msg} at column {error.colno}. Correct the array there, or "
            "write one object a line."
        ) from error
    return _array_items(path, text, total)


def _array_items(path: Path, text: str, total: int) -> Iterator[Record]:
    """The items of a valid array, each with the line on which it starts."""
    decode = json.JSONDecoder().raw_decode
    end, line = text.index("[") + 1, 1
    for number in range(1, total + 1):
        separator = _SEPARATOR.match(text, end)
        start = separator.end() if separator else end
        line += text.count("\n", end if number > 1 else 0, start)
        value, end = decode(text, start)
        yield Record.of(f"{path}:{line} (row {number})", value)
        line += text.count("\n", start, end)


def read_csv(path: Path) -> Iterator[Record]:
    """Rows under a header line, each placed at the line on which it starts. Fields are text, or `None` where empty.

    Raises:
        ValueError: a header with an empty or a repeated name, or a quote that never closes.
    """
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = _csv_header(path, next(reader, []))
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                yield _csv_row(f"{path}:{line}", header, fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num} is not CSV: {error}. Correct the row that ends there.") from error


def _csv_header(path: Path, header: list[str]) -> list[str]:
    if "" in header or len(set(header)) < len(header):
        raise ValueError(
            f"{path}:1 is a header with an empty or a repeated column name ({', '.join(map(shortened, header))}). Give "
            "each column a name of its own."
        )
    return header


def _csv_row(place: str, header: list[str], fields: list[str]) -> Record:
    if len(fields) != len(header):
        return Record(
            place, {}, f"{len(fields)} of the {len(header)} fields that the header names ({shortened(fields)})"
        )
    return Record(place, {name: field or None for name, field in zip(header, fields, strict=True)})


def read_parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file, counted from 1.

    Raises:
        ValueError: not a whole Parquet file.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}). Copy or download it again.") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield Record(f"{path}: row {number}", row)


TEXT_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
}
