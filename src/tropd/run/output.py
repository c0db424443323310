"""The output directory of a run: empty, or that of the run to resume."""

import json
import os
import re
from pathlib import Path
from typing import Any

from ..objective.methods import describe
from ..training.checkpointing.checkpoints import read_record
from ..training.checkpointing.directory_lock import LOCK
from ..training.checkpointing.place import check_place

RECORDS = re.compile(
    r"(run|preflight|fingerprints)(-\d+)?\.json|metrics(-\d+)?\.jsonl|(rollouts|completions)(-\d+)?|_earlier-\d+"
    r"|README\.md|final_model\.json|report(-\d+)?\.html|\.writing|\.lock"
)
"""What a run leaves that ended before its first checkpoint; a new run in the folder sets its records aside."""


def check_output_directory(output_dir: str, resume: str | None) -> str | None:
    """Refuse a folder that holds another run; the checkpoint to resume from, where one is asked for."""
    directory = Path(os.path.expanduser(output_dir))  # as Transformers will read it
    check_place(directory)
    if resume is not None:
        return _checkpoint(directory, resume)
    if not directory.exists() or int(os.environ.get("RANK", "0")) > 0:
        return None
    found = sorted(path.name for path in directory.iterdir() if path.name != LOCK)
    if any(name in found for name in ("run.json", "preflight.json")):
        found = [name for name in found if not RECORDS.fullmatch(name)]
    if found:
        shown = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        raise ValueError(
            f"output_dir is {str(directory)!r}, which is not empty (it holds {shown}). Choose another folder, or "
            "resume the run in it: --resume_from_checkpoint latest"
        )
    return None


def check_same_run(output_dir: str, args: Any, teacher: Any = None) -> list[str]:
    """A run resumes with the method it began with; other changed settings, and a different teacher, are reported."""
    from ..training.checkpointing.fingerprints import changed_settings

    path = Path(output_dir) / "run.json"
    if not path.is_file():
        return []
    try:
        begun = read_record(path, {"method": dict, "configuration": dict})
    except ValueError as error:
        raise ValueError(
            f"the run in {output_dir} cannot be resumed: {error}. Restore that file, or start a new run in another "
            "output_dir."
        ) from error
    method = json.loads(json.dumps(describe(args.resolved_method())))
    if begun["method"] != method:
        differing = sorted(key for key in method | begun["method"] if method.get(key) != begun["method"].get(key))
        changes = ", ".join(f"{key} {begun['method'].get(key)!r} → {method.get(key)!r}" for key in differing)
        raise ValueError(
            f"the run in {output_dir} began with a different method ({changes}). Resume with that method, or start a "
            "new run in another output_dir."
        )
    before = begun.get("teacher")
    others = teacher is not None and before is not None and teacher != before
    said = [f"teacher was {before!r} when the run in {output_dir} began, and is {teacher!r} now"] if others else []
    return said + changed_settings(args, output_dir)


def _checkpoint(directory: Path, resume: str) -> str:
    from ..training.checkpointing.checkpoints import check_checkpoint, checkpoints_in

    if resume.lower() in ("latest", "true"):
        found = checkpoints_in(directory)
        if not found:
            raise ValueError(
                f"resume_from_checkpoint is {resume!r}, but there is no checkpoint in output_dir {str(directory)!r}. "
                "Remove it to start a new run."
            )
        resume = str(found[-1])
    elif not (Path(resume) / "trainer_state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint is {resume!r}, which is not a checkpoint (it has no trainer_state.json). Name a "
            "folder such as out/checkpoint-20, or `latest`."
        )
    check_checkpoint(resume)
    return resume
