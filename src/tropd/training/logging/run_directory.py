"""A run directory that explains itself: `run.json`, `metrics.jsonl`, `rollouts/`, checkpoints, the final model."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...atomic_files import lines_of, write_whole
from ...extras import installed
from ...objective.methods import Method, describe

PACKAGES = ("tropd", "torch", "trl", "transformers", "accelerate", "peft", "datasets")
SOURCES = ("reasoning-gym",)
"""What prompts may come from; they need not be installed."""


def write_run_description(
    directory: str | Path,
    configuration: dict[str, Any],
    method: Method,
    teacher: Any = None,
    endings: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Write `run.json`: the resolved method, teachers, what ends a response, configuration, versions, platform.

    `engine` is what writes the rollouts; `None` is the student in the trainer's process. `made_from` is whatever else
    names what the run is made of, such as its data.
    """
    description = {
        "method": describe(method),
        "teacher": teacher,
        "endings": endings,
        "engine": engine,
        **(made_from or {}),
        "configuration": configuration,
        "versions": {name: installed(name) for name in (*PACKAGES, *SOURCES)},
        "python": platform.python_version(),
    }
    write_whole(Path(directory) / "run.json", json.dumps(description, indent=2, default=str) + "\n")


def drop_after_step(path: str | Path, step: int) -> None:
    """Remove the records of steps that a resumed run will do again, and a last line that a crash cut short.

    A last record that lacks only its newline gets one, or the next record would follow on the same line.
    """
    path = Path(path)
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = lines_of(text)
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
            f"{path} has the line {line!r:.60}, which is not a record of a step. Remove the line or the file to "
            "continue."
        )
    return number


def _is_cut(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return True
    return False
