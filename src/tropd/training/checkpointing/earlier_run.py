"""What an earlier run left in the output directory: moved aside when another begins there, never mixed with its own."""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .checkpoints import FINAL, WEIGHTS, checkpoints_in, steps_in_name
from .fingerprints import FILE as FINGERPRINTS
from .place import MODEL

logger = logging.getLogger(__name__)

ASIDE = "_earlier"
"""Folders of this name and a number hold checkpoints and models of earlier runs; the host does not push `_…`."""
RECORDS = ("run.json", "metrics.jsonl", "rollouts", "completions", "report.html", "preflight.json")


def set_aside(directory: str | Path, names: Iterable[str]) -> None:
    """Rename what an earlier run left under `names` to the first free `<stem>-<n><suffix>`; nothing is overwritten."""
    for name in names:
        path = Path(directory) / name
        if path.exists():
            path.rename(_free(path))


def set_run_aside(directory: str | Path, keeps: Iterable[str] = ()) -> None:
    """Move an earlier run's files out of a new one's way, except the records `keeps`, which the new one has written."""
    folder, kept = Path(directory), tuple(keeps)
    weights = [path for path in folder.glob("*") if path.suffix in WEIGHTS and path.name != "training_args.bin"]
    had_a_run = bool(weights) or any((folder / name).exists() for name in ("run.json", FINAL))
    model = [path for path in folder.iterdir() if had_a_run and path.is_file() and MODEL.fullmatch(path.name)]
    set_aside(folder, [name for name in RECORDS if name not in kept])
    _move(folder, [*model, *checkpoints_in(folder)])


def set_later_checkpoints_aside(directory: str | Path, step: int) -> None:
    """For a run that resumes from `step`: move the later checkpoints aside, which belong to another continuation."""
    _move(Path(directory), [path for path in checkpoints_in(directory) if steps_in_name(path) > step])


def check_stays(directory: str | Path, step: int, read: dict[str, Any]) -> None:
    """Refuse to move aside a checkpoint that the run itself reads.

    The run resumes there at `step`, or begins, at 0; `read` says from which folder, or name, each role was loaded.

    Raises:
        ValueError: with the model, and what to do.
    """
    moved = {path.resolve() for path in checkpoints_in(directory) if steps_in_name(path) > step}
    for role, name in read.items():
        if name and Path(name).resolve() in moved:
            raise ValueError(
                f"{role} is {str(name)!r}, one of the checkpoints in output_dir {str(directory)!r}, which are an "
                "earlier run's and are moved aside when this one begins. Choose another output_dir."
            )


def _move(folder: Path, paths: list[Path]) -> None:
    if not paths:
        return
    aside = _free(folder / ASIDE)
    aside.mkdir()
    if (folder / FINGERPRINTS).is_file():  # a checkpoint is compared with what is beside it
        shutil.copy2(folder / FINGERPRINTS, aside)
    for path in paths:
        path.rename(aside / path.name)
    logger.warning(
        "%s holds checkpoints or a model of an earlier run. They were moved to %s; remove it if you do not need it.",
        folder,
        aside,
    )


def _free(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return aside
