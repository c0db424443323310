"""What a run was made of, so that a resumed one can tell whether it still is: method, data, teachers, tokenizer.

A fingerprint is of contents, not of names: rows as they are stored, and a sample of every weight.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset

from ...atomic_files import write_whole
from ...models.fingerprint import of_tensors
from ...objective.methods import describe
from ...teacher.served.served import is_same_model
from ...teacher.teacher import Fingerprint
from .checkpoints import read_record

FILE = "fingerprints.json"
MOST_ROWS = 20_000
"""Rows of a data set that are read for its fingerprint, evenly spread; its length is always part of it."""
FREE_TO_CHANGE = ("resume_from_checkpoint", "logging_dir", "run_name", "report_to", "disable_tqdm", "max_steps")
"""Settings that make no other run."""


def fingerprints(trainer: Any) -> dict[str, Fingerprint]:
    """Fingerprints of what can be read here: a stream of data has none, and neither do sharded weights.

    Of a student only what its checkpoints do not hold: the base of an adapter.
    """
    from ..distributed.sharding import shards_teacher

    found: dict[str, Fingerprint] = {"method": _of(describe(trainer.args.resolved_method()))}
    found |= {"tokenizer": _of(sorted(trainer._tokenizer.get_vocab().items()), trainer._tokenizer.chat_template)}
    if hasattr(trainer.train_dataset, "__len__"):
        found["data"] = _of_rows(trainer.train_dataset)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if is_peft_model(trainer.model) and not sharded:
        base = {name: weight for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
        found["student's base"] = of_tensors(base)
    if not shards_teacher(trainer):
        for name, teacher in trainer.teachers.by_name.items():
            if name not in trainer.own_bases:
                found["teacher" if name is None else f"teacher {name}"] = teacher.fingerprint()
    return found


def _of_rows(dataset: Any) -> str:
    if isinstance(dataset, Dataset):
        dataset = dataset.with_format(None)  # as they are stored: a transform is for the step that reads a row
    step = max(1, len(dataset) // MOST_ROWS)
    return _of(len(dataset), [dataset[row] for row in range(0, len(dataset), step)])


def _of(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]


def check_unchanged(trainer: Any, checkpoint: str) -> None:
    """Refuse to resume from a checkpoint with a method, teacher, tokenizer or data other than those that made it.

    Data that are not skipped (`ignore_data_skip`) may differ.

    Raises:
        ValueError: with what has changed, and how to train on from the checkpoint all the same.
    """
    file = Path(checkpoint).parent / FILE
    if not file.is_file():  # of an earlier tropd
        return
    try:
        before, now = read_record(file, {}), fingerprints(trainer)
    except ValueError as error:
        raise ValueError(
            f"resume_from_checkpoint is {checkpoint}, but {error}. Put that file back as it was written beside the "
            "checkpoint; without it, what the run began with is not compared."
        ) from error
    changed = [name for name, value in before.items() if not _is_same(value, now.get(name, value))]
    if trainer.args.ignore_data_skip and "data" in changed:
        changed.remove("data")
    if changed:
        are = "are" if len(changed) > 1 or changed == ["data"] else "is"
        raise ValueError(
            f"resume_from_checkpoint is {checkpoint}, but the {' and the '.join(changed)} {are} not what the "
            "run began with, so its position in the data and its metrics would mix two runs. Use what it began with, "
            f"or start a new run with the checkpoint as its student: --student {checkpoint}"
            + (" (if only the data differ, ignore_data_skip: true continues)." if changed == ["data"] else ".")
        )


def _is_same(before: Any, now: Any) -> bool:
    """Of a served teacher, log-probabilities, which rounding may change; of all else, digests."""
    return is_same_model(before, now) if isinstance(before, list) and isinstance(now, list) else bool(before == now)


def changed_settings(args: Any, directory: str | Path) -> list[str]:
    """Settings of a resumed run that differ from those in its `run.json`; a line for each field.

    Raises:
        ValueError: the file cannot be read.
    """
    file = Path(directory) / "run.json"
    if not file.is_file():
        return []
    try:
        begun = read_record(file, {"configuration": dict})["configuration"]
    except ValueError as error:
        raise ValueError(
            f"the run in {directory} cannot be resumed: {error}. Put that file back as it was written; without "
            "it, settings are not compared."
        ) from error
    now = json.loads(json.dumps(args.to_dict(), default=str))
    return [
        f"{name} was {begun[name]!r} when the run in {directory} began, and is {now[name]!r} now"
        for name in sorted(now.keys() & begun.keys())
        if now[name] != begun[name] and name not in FREE_TO_CHANGE
    ]


def write(trainer: Any) -> None:
    """Write them beside the run's other records."""
    write_whole(Path(trainer.args.output_dir) / FILE, json.dumps(fingerprints(trainer), indent=1) + "\n")
