"""Prompts from a source: read, renamed, checked row by row, and handed over as a `datasets.Dataset`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chat import as_chat, with_system_prompt
from .files import Record
from .refusals import did_you_mean, nearest, refusal
from .rows import OURS, bad_rows
from .sources import Source, parts_of, read_records
from .table import to_dataset

if TYPE_CHECKING:
    from datasets import Dataset

PROBLEM_COLUMNS = ("prompt", "problem", "question", "text", "question_content")
"""What published data sets call the column that is asked, likeliest first."""

_ADVICE = (
    "Correct these rows, or remove them. A row is an object with a prompt (text, or a list of messages) and, where you "
    "have them, a teacher_response and a teacher_prompt; each column keeps one form throughout."
)


@dataclass(frozen=True, eq=False)
class PromptData:
    """Checked prompts, and where each came from.

    Attributes:
        dataset: columns `prompt`, `teacher_response` and `teacher_prompt` (where there are any), then the others.
        places: one `file:line` for each row.
        source: what was loaded, in words.
        dropped: how many rows `check_lengths` left out.
        notes: what a person should know: columns and rows that were left out. Print them.
    """

    dataset: "Dataset"
    places: tuple[str, ...]
    source: str
    dropped: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    def rows(self, n: int) -> list[dict[str, Any]]:
        """The first `n` rows, or all where there are fewer."""
        return self.dataset.select(range(min(n, len(self)))).to_list()


def load_prompts(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    chat: bool = False,
    system_prompt: str | None = None,
    limit: int | None = None,
) -> PromptData:
    """Load prompts and check every row.

    Args:
        source: a file (`.jsonl`, `.json`, `.csv`, each also `.gz`, or `.parquet`), a folder that `save_to_disk` wrote,
            a name on the Hub, or a list of them.
        columns: our column to the source's, such as `{"prompt": "question", "teacher_response": "solution"}`.
        split: of a folder or a name on the Hub that has splits.
        chat: make one user message of every prompt and teacher prompt that is text. Messages stay as they are.
        system_prompt: put before every prompt and teacher prompt; they must be messages.
        limit: only the first so many rows.

    Raises:
        ValueError: a source that cannot be read, a column that is not there, settings that contradict each other or
            the data, or bad rows: all of them at once, ten shown with their places.
    """
    parts = parts_of(source)
    _check_settings(columns, system_prompt, limit)
    _check_split(parts, split)
    records: list[Record] = []
    notes: list[str] = []
    for part in parts:
        wanted = None if limit is None else limit - len(records)
        found = list(islice(read_records(part, split), wanted))
        renamed, left_out = _renamed(found, {"prompt": "prompt", **(columns or {})}, part)
        records += renamed
        notes += left_out
    if chat:
        records = [as_chat(record) for record in records]
    if system_prompt is not None:
        records = [with_system_prompt(record, system_prompt) for record in records]
    if bad := bad_rows(records):
        raise refusal(bad, len(records), _ADVICE)
    dataset, left_out = to_dataset(records)
    places = tuple(record.place for record in records)
    return PromptData(dataset, places, ", ".join(parts), notes=(*notes, *left_out))


def _check_settings(columns: Mapping[str, str] | None, system_prompt: str | None, limit: int | None) -> None:
    for name in columns or {}:
        if name not in OURS:
            raise ValueError(
                f"columns renames to {name!r}, which is no column of ours ({', '.join(OURS)})."
                f"{did_you_mean(name, OURS)} Write {{ours: the file's}}; other columns keep their names."
            )
    if system_prompt is not None and not system_prompt.strip():
        raise ValueError(f"system_prompt is {system_prompt!r}, which says nothing. Leave it out.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; at least one row is needed. Leave it out to load them all.")


def _check_split(parts: Sequence[str], split: str) -> None:
    if split != "train" and all(Path(part).expanduser().is_file() for part in parts):
        raise ValueError(f"split is {split!r}, but files have no splits ({', '.join(parts)}). Leave it out.")


def _renamed(records: list[Record], columns: dict[str, str], part: str) -> tuple[list[Record], list[str]]:
    """The records under our column names, and a note for each column whose name was taken from it."""
    there = list(dict.fromkeys(name for record in records for name in record.values))
    if not there:
        return records, []
    for ours, theirs in columns.items():
        if theirs not in there:
            raise ValueError(_no_column(ours, theirs, there, part))
    hidden = [name for name in columns if name in there and name not in columns.values()]
    notes = [f"{part} has a column {name!r} of its own, left out: {columns[name]!r} is read for it." for name in hidden]
    return [record._replace(values=_renamed_row(record.values, columns)) for record in records], notes


def _renamed_row(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if name not in columns and name not in columns.values()}
    return {ours: values.get(theirs) for ours, theirs in columns.items()} | kept


def _no_column(ours: str, theirs: str, there: list[str], part: str) -> str:
    usual = next((name for name in PROBLEM_COLUMNS if ours == "prompt" and name in there), None)
    likely = nearest(theirs, [name for name in there if name == ours or name not in OURS]) or usual
    suggestion = f" Did you mean {likely!r}?" if likely else ""
    return (
        f"{part} has no column {theirs!r} (it has: {', '.join(there)}).{suggestion} "
        f"Set columns={{{ours!r}: {likely or '…'!r}}} with the name that holds it."
    )
