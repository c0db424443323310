"""Files that are there whole, line by line or not at all. Every layer may import it: it imports none."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def append_jsonl(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records, one a line, and make them reach the disk: all of them, or none where the disk has no room."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    # Without a buffer, which would be written once more when the file is closed.
    with path.open("ab", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            left = memoryview(lines.encode())
            while left:
                left = left[stream.write(left) :]
            os.fsync(stream.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                stream.truncate(before)
                if not before:
                    path.unlink()
            raise


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file of one a line, in their order."""
    return [json.loads(line) for line in lines_of(Path(path).read_text(encoding="utf-8"))]


def lines_of(text: str) -> list[str]:
    """Lines end by a newline alone: text within a record may hold every other separator, such as U+2028, as it is.

    >>> lines_of('{"text": "a\u2028b"}\\n\\n{}\\n')
    ['{"text": "a\\u2028b"}', '{}']
    """
    return [line for line in text.split("\n") if line.strip()]


def write_whole(path: Path, text: str) -> None:
    """Write aside and rename, so that a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(path.suffix + ".partial")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
