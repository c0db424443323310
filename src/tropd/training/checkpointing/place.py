"""Where a run, or a model, will be written: checked first, so that no run fails at its end because of the place."""

import os
import re
from pathlib import Path

MODEL = re.compile(
    r"((adapter_)?model|pytorch_model)[\w.-]*\.(safetensors|bin)(\.index\.json)?"
    r"|(adapter_|generation_|tokenizer_)?config\.json|(tokenizer|special_tokens_map|added_tokens|vocab)\.json"
    r"|tokenizer\.model|(merges|vocab)\.txt|chat_template\.jinja|training_args\.bin|README\.md"
    r"|final_model\.json|trainer_state\.json|\w+_results\.json"
)
"""Names of the files of a saved model, and of the records of its training beside it."""
RECORDS = re.compile(r"(run|fingerprints|preflight)\.json(\.partial)?|metrics\.jsonl|report\.html|\.lock")
"""Names of a run's other files."""
FOLDERS = re.compile(r"rollouts|\.writing|checkpoint-\d+")


def check_place(directory: str | Path) -> None:
    """Refuse an `output_dir` that is no folder and cannot become one, or in which a name that a run needs is taken.

    Raises:
        ValueError: with the folder, why, and what to do.
    """
    if directory == "":
        raise ValueError("output_dir is ''; name a folder.")
    directory = Path(directory)
    start = f"output_dir is {str(directory)!r:.200}"
    if "\0" in str(directory):
        raise ValueError(f"{start}, which contains a NUL character. Choose another name.")
    try:
        directory.exists()
        there = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
        is_folder = there.stat() and there.is_dir()
    except OSError as error:  # a link to nothing or to itself, a name too long, a folder that may not be looked into
        target = f" and a link to {os.readlink(directory)!r}" if os.path.islink(directory) else ""
        raise ValueError(f"{start}{target}, which cannot be used ({error.strerror}). Choose another name.") from error
    if not is_folder:
        what = "which" if there == directory else f"where {str(there)!r}"
        raise ValueError(f"{start}, {what} is a file. Choose another name.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{start}, and {str(there)!r} is not writable. Choose another folder.")
    if there == directory and os.access(there, os.R_OK):
        _check_names(directory, start)


def _check_names(directory: Path, start: str) -> None:
    for path in sorted(directory.iterdir()):
        is_file = any(names.fullmatch(path.name) for names in (MODEL, RECORDS))
        for is_one, is_such, kind in (
            (is_file, path.is_file(), "file"),
            (FOLDERS.fullmatch(path.name), path.is_dir(), "folder"),
        ):
            if is_one and not is_such:
                raise ValueError(
                    f"{start}, and {path.name!r} in it is no {kind}, though a run writes a {kind} of that name. Remove "
                    "or rename it, or choose another output_dir."
                )
