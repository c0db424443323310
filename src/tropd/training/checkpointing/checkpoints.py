"""Checkpoints that are there whole or not at all: written aside, described, made to reach the disk, renamed.

A visible `checkpoint-N` holds `checkpoint.json`, the size of each of its files, so that one that lacks a file or was
cut short afterwards is recognised before it is loaded; with `checkpoint_digests` their SHA-256 too, so that one that
was altered is.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..guards.errors import TrainingStopped

logger = logging.getLogger(__name__)

ASIDE = ".writing"
"""Folder in the output directory where a checkpoint is until it is whole. What a crash leaves there is removed."""

MANIFEST = "checkpoint.json"
FINAL = "final_model.json"
"""Beside a final model: its step and its files. It is written last, and by no other save."""

WEIGHTS = (".safetensors", ".bin")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK = 1 << 22

STATE: dict[str, type] = {"log_history": list, "stateful_callbacks": dict, "best_model_checkpoint": str}
"""Fields of trainer_state.json that a resumed host reads without checking their types."""


class CheckpointNotWritten(TrainingStopped):
    """There is no space for a checkpoint; earlier ones are unchanged."""


def clear_aside(directory: str | Path) -> None:
    """Remove what a crash left half written."""
    shutil.rmtree(Path(directory) / ASIDE, ignore_errors=True)


def publish(directory: str | Path, name: str, digests: bool = False) -> Path:
    """Make `<directory>/.writing/<name>` visible as `<directory>/<name>`, whole and on disk; returns that."""
    aside, final = Path(directory) / ASIDE / name, Path(directory) / name
    write_manifest(aside, digests=digests)
    _reach_disk(aside)
    if final.exists():  # the same step, saved again
        final.rename(Path(directory) / ASIDE / f"{name}-replaced")
    aside.rename(final)
    _reach_disk_itself(final.parent)
    clear_aside(directory)
    return final


def publish_model(directory: str | Path, name: str, step: int) -> None:
    """Move the final model, of a step, from `<directory>/.writing/<name>` into `<directory>`: file by
    file, each atomically, and their description last."""
    aside = Path(directory) / ASIDE / name
    write_manifest(aside, FINAL, digests=True, step=step)
    _reach_disk(aside)
    files = [path for path in aside.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: (path == aside / FINAL, path.stat().st_size)):
        final = Path(directory) / file.relative_to(aside)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, final)
    _reach_disk_itself(Path(directory))
    clear_aside(directory)


@contextmanager
def room_on_disk(directory: str | Path) -> Iterator[None]:
    """Turn a full disk into a sentence, and remove what was half written.

    Raises:
        CheckpointNotWritten: the disk, the quota or the largest file size is exhausted.
    """
    try:
        yield
    except Exception as error:
        clear_aside(directory)
        # safetensors and torch report the system's error as text.
        texts = [os.strerror(number) for number in FULL_DISK]
        if getattr(error, "errno", None) not in FULL_DISK and not any(text in str(error) for text in texts):
            raise
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise CheckpointNotWritten(
            f"there is not enough space for a checkpoint in {directory} ({reason}); earlier checkpoints are untouched. "
            "Free some space and resume with resume_from_checkpoint, or set save_total_limit or save_only_model."
        ) from error


# ---------------------------------------------------------------------- the manifest


def write_manifest(folder: Path, name: str = MANIFEST, *, digests: bool = False, **more: Any) -> None:
    """Describe every file of a folder in one of that name, by its size and with `digests` by its SHA-256, with the
    fields of `more`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != name]
    files: dict[str, dict[str, Any]] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size} for path in paths
    }
    if digests:
        for path in paths:
            files[path.relative_to(folder).as_posix()]["sha256"] = _digest(path)
    (folder / name).write_text(json.dumps(more | {"files": files}, indent=1) + "\n", encoding="utf-8")


def fault_of(folder: str | Path, digests: bool = True) -> str | None:
    """What is wrong with a checkpoint, such as `model.safetensors has 10 of 20 bytes`; `None` where it is whole.

    A checkpoint without a manifest (another program's) is accepted, with a warning.

    Args:
        folder: the checkpoint.
        digests: compare the digests that it was written with, which takes about a second a gigabyte; else, and where
            it has none, names and sizes alone.
    """
    folder = Path(folder)
    if not (folder / "trainer_state.json").is_file():
        return "it has no trainer_state.json"
    if not (folder / MANIFEST).is_file():
        logger.warning("%s has no %s, so it cannot be checked for completeness.", folder, MANIFEST)
        return None
    try:
        files = read_record(folder / MANIFEST, {"files": dict})["files"]
    except ValueError:
        return f"{MANIFEST} cannot be read"
    faults = (_fault(folder / name, described, digests) for name, described in files.items())
    return next((fault for fault in faults if fault), None) or _state_fault(folder)


def _state_fault(folder: Path) -> str | None:
    """What the host could not read in its own record."""
    try:
        state = read_record(folder / "trainer_state.json", {"global_step": int})
    except ValueError as error:
        return str(error)
    wrong = [name for name, kind in STATE.items() if not isinstance(state.get(name), kind | None)]
    wrong += ["global_step"] if isinstance(state["global_step"], bool) or state["global_step"] < 0 else []
    return f"trainer_state.json has {wrong[0]}: {state[wrong[0]]!r:.60}" if wrong else None


def read_record(path: Path, wanted: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object that a run has written for itself, with these fields, of these types.

    Raises:
        ValueError: with the file, and what is wrong with it.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    for name, kind in wanted.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{path.name} has {name}: {record.get(name)!r:.60}, which is not of type {kind.__name__}")
    return record


def has_final_model(directory: str | Path, step: int) -> bool:
    """Is there a final model of that step, with all of its files, and with its own weights in them?

    Other files may have been edited since; weights that something else has written are not the final ones.
    """
    try:
        described = read_record(Path(directory) / FINAL, {"files": dict})
        files = described["files"]
    except (OSError, ValueError):
        return False
    weights = {name: file for name, file in files.items() if Path(name).suffix in WEIGHTS}
    return (
        described.get("step") == step
        and all((Path(directory) / name).is_file() for name in files)
        and all(_fault(Path(directory) / name, file, digests=True) is None for name, file in weights.items())
    )


def _fault(file: Path, described: Any, digests: bool) -> str | None:
    if not isinstance(described, dict) or "bytes" not in described:
        return f"{MANIFEST} cannot be read"
    if not file.is_file():
        return f"{file.name} is missing"
    size = file.stat().st_size
    if size != described["bytes"]:
        return f"{file.name} has {size:,} bytes instead of {described['bytes']}"
    if digests and "sha256" in described and _digest(file) != described["sha256"]:
        return f"{file.name} was altered after it was written"
    return None


def steps_of(folder: str | Path) -> int:
    """Optimiser steps that had been taken when a checkpoint was written."""
    return int(read_record(Path(folder) / "trainer_state.json", {"global_step": int})["global_step"])


def check_checkpoint(folder: str | Path) -> None:
    """Refuse a checkpoint that is not whole, and offer the one before it.

    Raises:
        ValueError: with the file, what is wrong with it, and what to type.
    """
    fault = fault_of(folder)
    if fault is None:
        return
    place = Path(folder)
    before = [path for path in checkpoints_in(place.parent) if steps_in_name(path) < steps_in_name(place)]
    earlier = next((path for path in reversed(before) if fault_of(path) is None), None)
    offer = f"Resume from the one before it: resume_from_checkpoint={earlier}" if earlier else "There is no earlier one"
    raise ValueError(f"checkpoint {folder} is not complete: {fault}. {offer}.")


def checkpoints_in(directory: str | Path) -> list[Path]:
    """The visible checkpoints of an output directory, the earliest first."""
    return sorted(
        (path for path in Path(directory).glob("checkpoint-*") if path.is_dir() and steps_in_name(path) >= 0),
        key=steps_in_name,
    )


def steps_in_name(folder: Path) -> int:
    """The N of `checkpoint-N`; -1: it has none."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


# ---------------------------------------------------------------------- the disk


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _reach_disk(folder: Path) -> None:
    """fsync every file below `folder`, and the folders that name them."""
    for path in [*folder.rglob("*"), folder]:
        _reach_disk_itself(path)


def _reach_disk_itself(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
