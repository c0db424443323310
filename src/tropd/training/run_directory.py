"""A run directory that explains itself: `run.json`, `metrics.jsonl`, `rollouts/`, checkpoints, the final model."""

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..objective.methods import Method, describe

PACKAGES = ("tropd", "torch", "trl", "transformers", "accelerate", "peft", "datasets")


def write_run_description(
    directory: str | Path,
    configuration: dict[str, Any],
    method: Method,
    teacher: Any = None,
    endings: dict[str, Any] | None = None,
) -> None:
    """Write `run.json`: the resolved method, teachers, what ends a response, configuration, versions, platform."""
    description = {
        "method": describe(method),
        "teacher": teacher,
        "endings": endings,
        "configuration": configuration,
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
    }
    write_whole(Path(directory) / "run.json", json.dumps(description, indent=2, default=str) + "\n")


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
    return [json.loads(line) for line in _lines(Path(path).read_text(encoding="utf-8"))]


def _lines(text: str) -> list[str]:
    """Lines end by a newline alone: text within a record may hold every other separator, such as U+2028, as it is."""
    return [line for line in text.split("\n") if line.strip()]


def set_aside(directory: str | Path, names: Iterable[str]) -> None:
    """Rename what an earlier run left under `names` to the first free `<stem>-<n><suffix>`; nothing is overwritten."""
    for name in names:
        path = Path(directory) / name
        if path.exists():
            number = 1
            while (aside := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
                number += 1
            path.rename(aside)


def drop_after_step(path: str | Path, step: int) -> None:
    """Remove the records of steps that a resumed run will do again, and a last line that a crash cut short.

    A last record that lacks nothing but its newline is given one, or the next would stand on its line.
    """
    path = Path(path)
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = _lines(text)
    whole = lines[:-1] if lines and _is_cut(lines[-1]) else lines
    kept = [line for line in whole if _step(path, line) <= step]
    if len(kept) < len(lines) or not text.endswith("\n"):
        write_whole(path, "".join(line + "\n" for line in kept))


def _step(path: Path, line: str) -> float:
    """Of a record; one without a step was written before the first."""
    try:
        record = json.loads(line)
        number = record.get("step", 0) if isinstance(record, dict) else None
    except (ValueError, RecursionError):
        number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(
            f"{path} has the line {line!r:.60}, which is no record of a step. Remove it, or the whole file, to go on."
        )
    return number


def _is_cut(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return True
    return False


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


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
