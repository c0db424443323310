"""What a source is: a file, a folder that `save_to_disk` wrote, a name on the Hub, reasoning-gym, or several."""

import os
import re
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import struct_columns
from ..suggestions import did_you_mean
from .files import ROWS_AT_ONCE, TEXT_READERS, Record, reader_of
from .procedural import is_procedural, procedural_records

if TYPE_CHECKING:
    from datasets import Dataset

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A path, a name on the Hub, `reasoning_gym:TASK`, or several of them."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATA_FILE = re.compile(rf"\.({'|'.join(name[1:] for name in TEXT_READERS)}|parquet|gz)$", re.IGNORECASE)


def parts_of(source: Source) -> list[str]:
    parts = [os.fspath(source)] if isinstance(source, str | os.PathLike) else [os.fspath(part) for part in source]
    if not parts:
        raise ValueError("the source is an empty list. Give a file, a folder, a name on the Hub, or several of them.")
    return parts


def has_splits(source: Source) -> bool:
    """Whether `split` says anything about a source: it does not where all of it is files."""
    return not all(Path(part).expanduser().is_file() for part in parts_of(source))


def read_records(part: str, split: str, notes: MutableMapping[str, str] | None = None) -> Iterator[Record]:
    """The rows of a single source, with their places."""
    empty = True
    for record in procedural_records(part, split, notes) if is_procedural(part) else _records(part, split):
        empty = False
        yield record
    if empty:
        raise ValueError(f"{part} is empty: it has no rows. Give a source with at least one row.")


def _records(part: str, split: str) -> Iterator[Record]:
    path = Path(part).expanduser()
    if path.is_file():
        return reader_of(path)(path)
    if path.is_dir():
        return _rows(*_saved(path, split))
    if os.path.lexists(path):
        raise ValueError(f"{part} is {_no_file(path)}")
    if _HUB_NAME.fullmatch(part) and not _DATA_FILE.search(part):
        return _rows(_hub(part, split), f"{part} ({split})")
    raise ValueError(f"there is no file or folder {part}.{_nearest_file(path)} Correct the path.")


def _no_file(path: Path) -> str:
    """What a thing is that is there and no file, and what to do."""
    if not path.exists():
        return (
            f"a link to {os.readlink(path)!r}, whose target does not exist. Correct the link, or give the file itself."
        )
    return (
        "not a regular file: data are read more than once, which a pipe or a device does not allow. Write the data to "
        "a file first, such as prompts.jsonl; a .jsonl.gz can be read directly."
    )


def _rows(dataset: "Dataset", name: str) -> Iterator[Record]:
    filled = struct_columns(dataset.features.arrow_schema)
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        rows = dataset.select(range(start, min(start + ROWS_AT_ONCE, len(dataset)))).to_list()
        for number, row in enumerate(rows, start + 1):
            yield Record(f"{name}: row {number}", row, filled=filled)


def _saved(path: Path, split: str) -> tuple["Dataset", str]:
    """A data set saved on disk, and what its rows are called by."""
    from datasets import DatasetDict, load_from_disk

    if not ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        readable = sorted(file.name for file in path.iterdir() if _DATA_FILE.search(file.name))
        files = f"Give its files instead: {', '.join(readable)}." if readable else "It contains no readable file."
        raise ValueError(f"{path} is a folder, but Dataset.save_to_disk did not write it. {files}")
    try:
        saved: Any = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a complete saved data set ({error}). Save or copy it again.") from error
    if not isinstance(saved, DatasetDict):
        return saved, str(path)
    if split not in saved:
        raise ValueError(
            f"{path} has no split {split!r} (it has: {', '.join(saved)}).{did_you_mean(split, saved)} "
            f"Set split={next(iter(saved), '')!r}."
        )
    return saved[split], f"{path} ({split})"


def _hub(name: str, split: str) -> "Dataset":
    from datasets import load_dataset

    try:
        return load_dataset(name, split=split)
    except Exception as error:  # whatever network, Hub and loader raise: the person needs one sentence, and the cause
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{name!r} is not a file or folder here, and its split {split!r} cannot be loaded from the Hub "
            f"({type(error).__name__}: {reason}).{_nearest_file(Path(name))} Correct the path, or the name and split."
        ) from error


def _nearest_file(path: Path) -> str:
    """A suggestion from the same folder, or from the folder that is there instead of the one named."""
    folder = path.parent
    if folder.is_dir():
        return did_you_mean(path.name, [entry.name for entry in folder.iterdir()])
    if folder.parent.is_dir():
        return did_you_mean(folder.name, [entry.name for entry in folder.parent.iterdir() if entry.is_dir()])
    return ""
