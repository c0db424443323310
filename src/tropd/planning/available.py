"""How much memory a process may still use."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available_memory(use_cpu: bool = False) -> int:
    """Bytes free on the CUDA device where there is one, else of system memory within the control group's limit."""
    import torch

    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.mem_get_info()[0]
    return min([_system_memory(), *_cgroup_rests(CGROUPS)])


def _system_memory() -> int:
    """What Linux says is available; elsewhere all that is built in."""
    if MEMINFO.is_file():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_rests(root: Path) -> list[int]:
    """What each memory limit around this process leaves; page cache that can be dropped counts as left."""
    rests = []
    for folder in _cgroup_folders(root):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if not (folder / limit).is_file() or not (folder / usage).is_file():
                continue
            text = (folder / limit).read_text().strip()
            if text != "max":
                rests.append(max(0, int(text) - int((folder / usage).read_text()) + _droppable(folder)))
    return rests


def _cgroup_folders(root: Path) -> list[Path]:
    """The folders of this process's control group and of those around it, of version 2 and of version 1."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.is_file() else []
    paths = [line.split(":", 2)[2].strip("/") for line in lines if line.split(":")[1] in ("", "memory")]
    folders = {root, root / "memory"}
    for path in filter(None, paths):
        for base in (root, root / "memory"):
            folders.update([base / path, *(base / path).parents])
    return sorted(folder for folder in folders if folder == root or root in folder.parents)


def _droppable(folder: Path) -> int:
    if not (folder / "memory.stat").is_file():
        return 0
    fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(fields.get("inactive_file", 0))
