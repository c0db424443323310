"""A file of teacher responses that grows by whole batches, so a killed run resumes where it stopped."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .atomic_files import append_jsonl, write_whole
from .teacher.served.address import is_served

Row = dict[str, Any]

COLUMNS = ("teacher_response", "teacher_response_text", "teacher_response_ended")
"""What is added to a row."""
REWARD = "teacher_reward"
"""Added beside them to an episode in an environment that judges it."""


@dataclass(frozen=True)
class GenerationSettings:
    """What decides the responses; a file is only continued with the settings that it was begun with.

    Attributes:
        teacher: folder or name, as given.
        max_new_tokens: length at which a response is cut.
        temperature: of the softmax.
        responses_per_prompt: side by side in the file.
        batch_size: responses sampled together; a batch cut short is sampled again as a whole.
        seed: of the whole file.
        dtype: in which the teacher computes; `auto` is the stored one.
        engine: what writes: `hf`, `vllm` or `server`; they draw other responses with one seed.
    """

    teacher: str
    max_new_tokens: int = 512
    temperature: float = 1.0
    responses_per_prompt: int = 1
    batch_size: int = 16
    seed: int = 42
    dtype: str = "auto"
    engine: str = "hf"

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "responses_per_prompt", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature:g}; responses are sampled, and guidance should follow the teacher's "
                "own distribution, which is temperature 1. Choose a number above 0; a small one such as 0.01 "
                "is nearly greedy."
            )


@dataclass(frozen=True)
class Prompts:
    """The rows of a data set, ready to be answered.

    Attributes:
        rows: copied to the output, each with its response.
        places: `file:line` of each row, for messages.
        contexts: token ids that the teacher reads.
    """

    rows: Sequence[Row]
    places: Sequence[str]
    contexts: Sequence[list[int]]

    def sha256(self) -> str:
        """Of everything that is answered and copied."""
        digest = hashlib.sha256()
        for row, place, context in zip(self.rows, self.places, self.contexts, strict=True):
            digest.update(f"{as_json(row, place)}\n{context}\n".encode())
        return digest.hexdigest()


def as_json(row: Row, place: str) -> str:
    """A row as one line.

    Raises:
        ValueError: a value that JSON cannot carry, such as a date, bytes or not-a-number.
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place} has a value that JSON cannot represent ({error}). Remove its column.") from error


class ResponseFile:
    """The output, and beside it `<name>.settings.json` with what decided it.

    Args:
        path: JSONL file; what an earlier run wrote is kept up to its last whole batch.
        prompts: what is answered.
        settings: how.

    Attributes:
        total: responses when the file is complete.
        done: responses that are on the disk.

    Raises:
        ValueError: the file was begun with different settings or prompts, written by something else, or edited.
    """

    def __init__(self, path: str | Path, prompts: Prompts, settings: GenerationSettings):
        self.path, self.prompts, self.settings = Path(path), prompts, settings
        self.total = len(prompts.rows) * settings.responses_per_prompt
        self.done = self._size = 0
        described = {**asdict(settings), "num_prompts": len(prompts.rows), "prompts_sha256": prompts.sha256()}
        settings_path = self.path.with_name(self.path.name + ".settings.json")
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder. Name a file in it, such as {self.path / 'responses.jsonl'}.")
        if self.path.exists() and self.path.stat().st_size:
            self._check_begun_with(described, settings_path)
            self._drop_what_was_cut()
        write_whole(settings_path, json.dumps(described, indent=2) + "\n")

    def missing_batches(self) -> Iterator[list[int]]:
        """Of each batch that is not done yet, which row each of its responses answers."""
        size, each = self.settings.batch_size, self.settings.responses_per_prompt
        for start in range(self.done, self.total, size):
            yield [line // each for line in range(start, min(start + size, self.total))]

    def append(self, records: Sequence[Row]) -> None:
        """Add a batch; it is on the disk when this returns."""
        if self._size != (self.path.stat().st_size if self.path.exists() else 0):
            raise ValueError(f"{self.path} is also being written by another process. Wait until it has finished.")
        append_jsonl(self.path, records)
        self.done, self._size = self.done + len(records), self.path.stat().st_size

    def records(self) -> Iterator[Row]:
        """What is on the disk."""
        if self.done:
            with self.path.open(encoding="utf-8") as stream:
                yield from map(json.loads, stream)

    def _check_begun_with(self, described: dict[str, Any], settings_path: Path) -> None:
        if not settings_path.exists():
            raise ValueError(
                f"{self.path} exists without {settings_path.name}, which records its settings. Choose "
                "another output file, or remove it."
            )
        begun = {"engine": "server" if is_served(described["teacher"]) else "hf"}  # before there was a choice
        begun |= json.loads(settings_path.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {begun.get(name)} and is {value}"
            for name, value in described.items()
            if begun.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{self.path} was begun with different settings or prompts: {'; '.join(changed)}. Use the earlier ones "
                "to resume, or choose another output file."
            )

    def _drop_what_was_cut(self) -> None:
        """Keep the whole batches; what follows them is generated again."""
        size = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream):
                record = _parsed(line)
                if record is None:
                    break
                self._check_is_ours(record, number)
                size += len(line)
                if (number + 1) % self.settings.batch_size == 0 or number + 1 == self.total:
                    self.done, self._size = number + 1, size
        os.truncate(self.path, self._size)

    def _check_is_ours(self, record: Row, number: int) -> None:
        place = number // self.settings.responses_per_prompt
        row = json.loads(as_json(self.prompts.rows[place], self.prompts.places[place])) if number < self.total else None
        if {name: value for name, value in record.items() if name not in (*COLUMNS, REWARD)} != row:
            raise ValueError(
                f"{self.path}:{number + 1} is not the expected row: the file was edited or sorted. Choose another "
                "output file."
            )


def _parsed(line: bytes) -> Row | None:
    """A line's record, or `None` if it was cut short."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
