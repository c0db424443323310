"""A run's folder as plain data: what `tropd train` and `TrOPDTrainer` leave, finished or not."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import lines_of

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """What a run has written so far; `preflight` is empty where there was none."""

    path: Path
    description: Record
    steps: Sequence[Record]
    evaluations: Sequence[Record]
    preflight: Record
    has_ended: bool  # the last line is the summary

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def method(self) -> str:
        return str(self.description["method"]["name"])

    @property
    def measurement(self) -> Record:
        """The preflight's measurement; of several teachers there is one for each, and here none."""
        return self.preflight.get("measurement") or {}

    def rollouts(self) -> Iterator[Record]:
        for file in rollout_files(self.path):
            yield from whole_lines(file)


def rollout_files(folder: Path) -> list[Path]:
    """A run's logs of rollouts, in the order of its steps."""
    return sorted((folder / "rollouts").glob("step-*.jsonl"))


def read_run(folder: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        ValueError: it is no run's folder, or one of its files is damaged; with its name.
    """
    description = _read_json(folder / "run.json")
    if description is None:
        raise ValueError(
            f"{str(folder)!r} has no run.json, so it is not the folder of a run. Name the output_dir of `tropd train`."
        )
    if not isinstance(description.get("method"), dict) or "name" not in description["method"]:
        raise ValueError(f"{folder / 'run.json'} names no method, so it is not the run.json of a run.")
    file = folder / "metrics.jsonl"
    logged = whole_lines(file) if file.is_file() else []
    return RunFolder(
        folder,
        description,
        steps=[entry for entry in logged if _has_steps(entry)],
        evaluations=[entry for entry in logged if "eval_loss" in entry],
        preflight=_read_json(folder / "preflight.json") or {},
        has_ended=bool(logged) and "train_runtime" in logged[-1],
    )


def _has_steps(entry: Record) -> bool:
    """Does a line have metrics of steps? The summary has those since the last logged step, without `loss`."""
    return "loss" in entry or "loss/trust" in entry


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file that may be being written: a last line without its end is not there yet."""
    text = file.read_text(encoding="utf-8")
    lines = lines_of(text[: text.rfind("\n") + 1])
    try:
        found = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{file} has a line that is not JSON ({error}). Remove it.") from error
    if not all(isinstance(record, dict) for record in found):
        raise ValueError(f"{file} has a line that is not a record. Remove it.")
    return found


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} contains no records.")
    return found
