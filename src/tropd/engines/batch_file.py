"""A file of JSON lines that grows by whole batches, so that a killed run resumes where it stopped."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..atomic_files import append_jsonl, write_whole

SHOWN = 80
"""Characters of a setting that has changed."""


class BatchFile:
    """The file, of which `done` of `total` lines are on the disk, `batch_size` written together.

    What an earlier run wrote is kept up to its last whole batch. Beside it lies a file of settings, `described`, which
    are everything that decides the lines; it is only continued with the same ones.
    """

    def __init__(self, path: Path, settings: Path, described: dict[str, Any], total: int, batch_size: int):
        self.path, self.total, self.batch_size = path, total, batch_size
        self.done = self._size = 0
        described = json.loads(json.dumps(described))
        if path.is_dir():
            raise ValueError(f"{path} is a folder. Name a file in it, such as {path / 'responses.jsonl'}.")
        if path.exists() and path.stat().st_size:
            _check_begun_with(path, settings, described)
            self._keep_whole_batches()
        write_whole(settings, json.dumps(described, indent=2, ensure_ascii=False) + "\n")

    def is_expected(self, record: dict[str, Any], line: int) -> bool:
        """Does a record belong to a line, counted from 0? Whoever knows what is asked there says so."""
        return True

    def missing_batches(self) -> Iterator[range]:
        """The lines of each batch that is not done yet."""
        for start in range(self.done, self.total, self.batch_size):
            yield range(start, min(start + self.batch_size, self.total))

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add a batch; it is on the disk when this returns."""
        if self._size != (self.path.stat().st_size if self.path.exists() else 0):
            raise ValueError(f"{self.path} is also being written by another process. Wait until it has finished.")
        append_jsonl(self.path, records)
        self.done, self._size = self.done + len(records), self.path.stat().st_size

    def _keep_whole_batches(self) -> None:
        """What follows them is generated again."""
        size = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                record = _parsed(line)
                if record is None and number + sum(1 for _ in stream) <= self.done + self.batch_size:
                    break  # in the last batch, which was cut short
                if record is None or number > self.total or not self.is_expected(record, number - 1):
                    raise ValueError(
                        f"{self.path}:{number} is not the expected row: the file was edited or sorted. Choose another "
                        "--out, or remove the file."
                    )
                size += len(line)
                if number % self.batch_size == 0 or number == self.total:
                    self.done, self._size = number, size
        os.truncate(self.path, self._size)


def _check_begun_with(path: Path, settings: Path, described: dict[str, Any]) -> None:
    if not settings.exists():
        raise ValueError(
            f"{path} exists without {settings.name}, which records its settings. Remove it, or choose another --out."
        )
    begun = json.loads(settings.read_text(encoding="utf-8"))
    changed = [
        f"{name} was {_shown(begun.get(name))} and is {_shown(described.get(name))}"
        for name in {**begun, **described}
        if begun.get(name) != described.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} was started with different settings or data: {'; '.join(changed)}. Use the earlier ones to "
            "resume, or choose another --out."
        )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line's record, or `None` if it has none, as one that was cut short."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
