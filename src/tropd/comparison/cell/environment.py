"""What a cell ran on: versions, the commit of the source where there is one, threads."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from ...training.logging.run_directory import PACKAGES

SOURCE = Path(__file__).resolve().parents[1]


def environment() -> dict[str, Any]:
    """Versions of the packages and of Python, the commit, the number of threads."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": versions,
        "python": platform.python_version(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
    }


def commit(folder: Path = SOURCE) -> str | None:
    """The commit of this package's own source, with `+` where tracked files differ from it; `None` outside of git."""
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    if tracked is None:  # an installation inside of somebody else's repository is not ours to name
        return None
    head = _git(folder, "rev-parse", "--short=10", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    return None if head is None else head + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
