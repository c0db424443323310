"""Prompts from a source: read, renamed, checked row by row, and returned as a `datasets.Dataset`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..messages import TOOLS, without_nulls
from ..suggestions import did_you_mean, nearest
from ..visible import shorten
from .files import ROWS_AT_ONCE, Record
from .refusals import BadRow, refusal
from .rows import OURS, PROMPTS, TEACHER, FirstForms, bad_rows, form_of
from .sources import Source, has_splits, parts_of, read_records

if TYPE_CHECKING:
    from datasets import Dataset

PROBLEM_COLUMNS = ("prompt", "problem", "question", "text", "question_content")
"""Names that published data sets give to the prompt column, likeliest first."""

FOR_PEOPLE = "teacher_response_text"
"""Text that `tropd generate` writes for human readers. It is long, and nothing reads it."""

_ADVICE = (
    "Correct these rows, or remove them. A row is an object with a prompt (text, or a list of messages) and, where you "
    "have them, a teacher_response and a teacher_prompt; each column keeps one form throughout."
)


@dataclass(frozen=True, eq=False)
class PromptData:
    """Checked prompts, and where each came from.

    Columns are `prompt`, `teacher_response`, `teacher_prompt` and `tools` (where there are any), then the others.
    Messages and tools are as they were written: no field is added that another row has.
    """

    dataset: "Dataset"
    places: tuple[str, ...]  # one `file:line` for each row
    source: str  # what was loaded, in words
    dropped: int = 0  # how many rows `check_lengths` left out
    notes: tuple[str, ...] = ()  # what a person should know: columns and rows that were left out. Print them

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
    optional_columns: bool = False,
    teachers: Sequence[str] | None = None,
) -> PromptData:
    """Load prompts and check every row.

    Rows are read, checked and put into Arrow a few hundred at a time, so that memory is little more than what the data
    set itself takes, in this process. Of a JSON array, the text is in memory as well.

    Args:
        source: a file (`.jsonl`, `.json`, `.csv`, each also `.gz`, or `.parquet`), a folder that `save_to_disk` wrote,
            a name on the Hub, `reasoning_gym:TASK` (see `procedural`), or a list of them.
        columns: our column to the source's, such as `{"prompt": "question", "teacher_response": "solution"}`.
        split: of a folder or a name on the Hub that has splits.
        chat: make one user message of every prompt and teacher prompt that is text. Messages stay as they are.
        system_prompt: put before every prompt and teacher prompt; they must be messages.
        limit: only this many first rows; later ones are not read.
        optional_columns: a column that `columns` names and a source lacks is absent from the data, not refused. For
            evaluation data, which is read with the names of the training data. The prompt is needed all the same.
        teachers: names of several teachers; every row then has to name one of them in its `teacher` column. `None`: a
            column of that name is one like any other.

    Raises:
        ValueError: a source that cannot be read, a column that is not there, settings that contradict each other or
            the data, or bad rows: all of them at once, ten shown with their places.
    """
    from .table import GrowingTable

    parts = parts_of(source)
    _check_settings(columns, system_prompt, limit, teachers)
    if split != "train" and not has_splits(parts):
        raise ValueError(f"split is {split!r}, but files have no splits ({', '.join(parts)}). Remove it.")
    needed = ("prompt",) if teachers is None else ("prompt", TEACHER)
    wanted = {**dict(zip(needed, needed, strict=True)), **(columns or {})}
    required = needed if optional_columns else tuple(wanted)
    table, first_of_form = GrowingTable(), FirstForms()
    places: list[str] = []
    notes: list[str] = []
    bad: list[BadRow] = []
    for part in parts:
        there: dict[str, None] = {}
        told: dict[str, str] = {}
        for read in _chunks(read_records(part, split, told), None if limit is None else limit - len(places)):
            there.update(dict.fromkeys(name for record in read for name in record.values))
            records = [_prepared(record, wanted, chat, system_prompt) for record in read]
            places += [record.place for record in records]
            bad += bad_rows(records, first_of_form, teachers)
            if not bad:
                table.add(records)
        _check_columns(wanted, required, list(there), part)
        notes += [*told.values(), *_column_notes(wanted, there, part)]
    if bad:
        raise refusal(bad, len(places), _ADVICE)
    dataset, left_out = table.dataset()
    if first_of_form["prompt"][0] == "text" and TOOLS in dataset.column_names:
        notes.append(
            f"there is a column {TOOLS!r}, but the prompts are text, so no chat template renders it; only the reward "
            "functions get it. Set chat: true (--chat) to make each prompt a user's message."
        )
    return PromptData(dataset, tuple(places), ", ".join(parts), notes=(*notes, *left_out))


def _chunks(records: Iterator[Record], limit: int | None) -> Iterator[list[Record]]:
    some = islice(records, limit)
    while chunk := list(islice(some, ROWS_AT_ONCE)):
        yield chunk


def _prepared(record: Record, columns: Mapping[str, str], chat: bool, system_prompt: str | None) -> Record:
    values = _renamed(record.values, columns)
    filled = [name for name in OURS if columns.get(name, name) in record.filled and name in values]
    record = record._replace(values=values | {name: without_nulls(values[name]) for name in filled})
    if chat:
        record = _as_chat(record)
    return record if system_prompt is None else _with_system_prompt(record, system_prompt)


def _as_chat(record: Record) -> Record:
    """The record with one user message in place of each prompt that is text. Blank text stays, and is refused later."""
    return _change_prompts(
        record,
        lambda value: [{"role": "user", "content": value}] if form_of(value) == "text" and value.strip() else value,
    )


def _with_system_prompt(record: Record, system_prompt: str) -> Record:
    """The record with a system message in front of each prompt."""
    _check_room_for_system_prompt(record)
    message = {"role": "system", "content": system_prompt}
    return _change_prompts(record, lambda value: [message, *value] if form_of(value) == "messages" else value)


def _check_room_for_system_prompt(record: Record) -> None:
    for name in PROMPTS:
        value: Any = record.values.get(name)
        if form_of(value) == "text" and value.strip():
            raise ValueError(
                f"system_prompt is set, but {name} is text in {record.place}, and text cannot have a system message. "
                "Set chat=True, or remove system_prompt."
            )
        if form_of(value) == "messages" and value[0].get("role") in ("system", "developer"):
            raise ValueError(
                f"system_prompt is set, but {name} begins with a {value[0]['role']} message in {record.place}. Remove "
                "system_prompt, or remove that message from the data."
            )


def _change_prompts(record: Record, change: Callable[[Any], Any]) -> Record:
    changed = {name: change(record.values[name]) for name in PROMPTS if name in record.values}
    return record._replace(values=record.values | changed)


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The values under our column names, without those whose name is taken and without what is for people."""
    theirs_all = columns.values()
    kept = {
        name: value
        for name, value in values.items()
        if name not in columns and name not in theirs_all and name != FOR_PEOPLE
    }
    return {ours: values[theirs] for ours, theirs in columns.items() if theirs in values} | kept


def _check_settings(
    columns: Mapping[str, str] | None, system_prompt: str | None, limit: int | None, teachers: Sequence[str] | None
) -> None:
    if columns is not None and not (isinstance(columns, Mapping) and all(isinstance(c, str) for c in columns.values())):
        raise ValueError(f"columns is {shorten(columns)}; write {{ours: the file's}}, with two column names.")
    for name in columns or {}:
        if name == TEACHER and teachers is None:
            raise ValueError(
                "columns renames to 'teacher', which is read only with several teachers: `teacher: "
                "{math: path, code: path}`. Remove it, or give a mapping of teachers."
            )
        if name == TEACHER:
            continue
        if name not in OURS:
            raise ValueError(
                f"columns renames to {name!r}, which is not a column that tropd reads ({', '.join(OURS)})."
                f"{did_you_mean(str(name), OURS)} Write {{ours: the file's}}; other columns keep their names."
            )
    if system_prompt is not None and not (isinstance(system_prompt, str) and system_prompt.strip()):
        raise ValueError(f"system_prompt is {system_prompt!r:.100}, which is empty. Remove it, or write text.")
    if limit is not None and not (type(limit) is int and limit >= 1):
        raise ValueError(f"limit is {limit!r:.100}; at least one row is needed. Remove it to load all rows.")


def _check_columns(columns: Mapping[str, str], required: Sequence[str], there: list[str], part: str) -> None:
    for ours in required:
        if there and columns[ours] not in there:
            raise ValueError(_no_column(ours, columns[ours], there, part))


def _column_notes(columns: Mapping[str, str], there: Iterable[str], part: str) -> list[str]:
    """A note for each column that is ignored because another one has its name."""
    names = list(there)
    notes = []
    for ours, theirs in columns.items():
        if ours in names and ours not in columns.values():
            absent = "" if theirs in names else ", but is missing"
            notes.append(f"{part} has a column {ours!r}, which is ignored: {theirs!r} is read instead{absent}.")
    return notes


def _no_column(ours: str, theirs: str, there: list[str], part: str) -> str:
    usual = next((name for name in PROBLEM_COLUMNS if ours == "prompt" and name in there), None)
    likely = nearest(theirs, [name for name in there if name == ours or name not in OURS]) or usual
    suggestion = f" Did you mean {likely!r}?" if likely else ""
    return (
        f"{part} has no column {theirs!r} (it has: {', '.join(there)}).{suggestion} Set columns={{{ours!r}: "
        f"{likely or '…'!r}}} with the right column name; on the command line: --columns.{ours} {likely or '…'}."
    )
