"""A file of teacher responses."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .engines.batch_file import BatchFile

Row = dict[str, Any]

COLUMNS = ("teacher_response", "teacher_response_text", "teacher_response_ended")
"""What is added to a row."""
REWARD = "teacher_reward"
"""Added beside them to an episode in an environment that judges it."""


@dataclass(frozen=True)
class GenerationSettings:
    """What decides the responses, as `tropd generate --help` explains it; a file is continued only with the same."""

    teacher: str
    max_new_tokens: int = 512
    temperature: float = 1.0
    responses_per_prompt: int = 1
    batch_size: int = 16
    seed: int = 42
    dtype: str = "auto"
    engine: str = "hf"
    max_tool_result_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "responses_per_prompt", "batch_size", "max_tool_result_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature:g}; responses are sampled, and guidance should follow the teacher's "
                "own distribution, which is temperature 1. Choose a number above 0; a small one such as 0.01 "
                "is nearly greedy."
            )


@dataclass(frozen=True)
class Prompts:
    """The rows of a data set with their `file:line`, ready to be answered, and the token ids that the teacher reads."""

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
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place} has a value that JSON cannot represent ({error}). Remove its column.") from error


class ResponseFile(BatchFile):
    """The output, and beside it `<name>.settings.json`; each row has its responses side by side."""

    def __init__(self, path: str | Path, prompts: Prompts, settings: GenerationSettings):
        path = Path(path)
        self.prompts, self.settings = prompts, settings
        described = {**asdict(settings), "num_prompts": len(prompts.rows), "prompts_sha256": prompts.sha256()}
        total = len(prompts.rows) * settings.responses_per_prompt
        super().__init__(path, path.with_name(path.name + ".settings.json"), described, total, settings.batch_size)

    def rows(self, lines: Sequence[int]) -> list[int]:
        """Which row each of these lines answers."""
        return [line // self.settings.responses_per_prompt for line in lines]

    def records(self) -> Iterator[Row]:
        """What is on the disk."""
        if self.done:
            with self.path.open(encoding="utf-8") as stream:
                yield from map(json.loads, stream)

    def is_expected(self, record: Row, line: int) -> bool:
        """See `BatchFile`: it is a row with its response."""
        (number,) = self.rows([line])
        row = json.loads(as_json(self.prompts.rows[number], self.prompts.places[number]))
        return {name: value for name, value in record.items() if name not in (*COLUMNS, REWARD)} == row
