"""The output directory of a run: empty, or the one to go on with."""

import os
import re
from pathlib import Path

RECORDS = re.compile(r"(run|preflight)(-\d+)?\.json|metrics(-\d+)?\.jsonl|rollouts(-\d+)?|README\.md|\.writing")
"""What a run leaves that ended before its first checkpoint; a new run in the folder sets its records aside."""


def check_output_directory(output_dir: str, resume: str | None) -> str | None:
    """Refuse a folder that holds another run; the checkpoint to resume from, where one is asked for.

    Args:
        output_dir: where the run goes.
        resume: `latest`, a checkpoint's folder, or `None` for a new run.

    Raises:
        ValueError: with what is in the folder, and what to type.
    """
    directory = Path(output_dir)
    if resume is not None:
        return _checkpoint(directory, resume)
    if not directory.exists() or int(os.environ.get("RANK", "0")) > 0:
        return None
    if not directory.is_dir():
        raise ValueError(f"output_dir is {str(directory)!r}, which is a file. Choose another name.")
    found = sorted(path.name for path in directory.iterdir())
    if any(name in found for name in ("run.json", "preflight.json")):
        found = [name for name in found if not RECORDS.fullmatch(name)]
    if found:
        shown = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        raise ValueError(
            f"output_dir is {str(directory)!r}, which is not empty (it holds {shown}). Choose another folder, or go on "
            "with the run in it: --resume_from_checkpoint latest"
        )
    return None


def _checkpoint(directory: Path, resume: str) -> str:
    from ..training.checkpoints import check_checkpoint, checkpoints_in

    if resume.lower() in ("latest", "true"):
        found = checkpoints_in(directory)
        if not found:
            raise ValueError(
                f"resume_from_checkpoint is {resume!r}, but there is no checkpoint in output_dir {str(directory)!r}. "
                "Leave it out to start anew."
            )
        resume = str(found[-1])
    elif not (Path(resume) / "trainer_state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint is {resume!r}, which is no checkpoint (it has no trainer_state.json). Name a "
            "folder such as out/checkpoint-20, or `latest`."
        )
    check_checkpoint(resume)
    return resume
