"""`tropd doctor`: versions, what this machine can run, and the command for what is missing.

What is installed is read from its metadata and not imported, so that it takes a second where importing takes many.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packaging import requirements as requirements_of
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ..extras import installed
from . import console

HELP = "versions, what this machine can run, and what is missing"

DESCRIPTION = """\
Show which versions are installed and whether they work together, what this machine can run, and the commands to install
what is missing. No model is needed and none is loaded. Exit code 1 if training cannot run here.
"""

EPILOG = """\
examples:
  tropd doctor
  tropd doctor && tropd compare recipe:proving_ground/demo --out demo
"""

TRACKERS = ("trackio", "wandb", "tensorboard")
SECONDS_FOR_A_DRIVER = 5.0


class Requirement(NamedTuple):
    """What a distribution asks for: `name` within `bounds` such as `>=5.17,<5.25`, for one of its extras or always."""

    name: str
    bounds: str
    extra: str | None


@dataclass(frozen=True)
class Ability:
    """Something that one may want to run here, what stands in the way in words, and what to type for it."""

    what: str
    lacking: str
    command: str


def run(options: argparse.Namespace) -> int:
    if installed("tropd") is None:
        raise ValueError(
            "tropd runs from a folder that is not installed, so its requirements are unknown. pip install -e ."
        )
    asked = requirements("tropd")
    screen = console.out()
    screen.print("versions", style="bold")
    console.show(*(f"  {line}" for line in _version_lines(asked)))
    conflicts = list(find_conflicts({requirement.name for requirement in asked}))
    for sentence in conflicts:
        console.warn(sentence)
    screen.print("\nthis machine", style="bold")
    console.show(*(f"  {name:<10} {value}" for name, value in machine()))
    screen.print("\nwhat can run", style="bold")
    found = abilities(asked)
    for ability in found:
        console.show(f"  {ability.what:<38} {'yes' if not ability.lacking else f'no: {ability.lacking}'}")
    missing = dict.fromkeys(ability.command for ability in found if ability.command)
    if missing:
        screen.print("\nto install what is missing", style="bold")
        console.show(*(f"  {command}" for command in missing))
    works = not found[0].lacking
    if works:
        screen.print("\nnext", style="bold")
        console.show(
            "  tropd compare recipe:proving_ground/demo --out demo        the demonstration",
            "  tropd check --student … --teacher … --data prompts.jsonl   your own pair",
        )
    return 0 if works else 1


# ---------------------------------------------------------------------- versions


def requirements(distribution: str) -> list[Requirement]:
    """What an installed distribution asks for; of what depends on platform or Python, nothing."""
    found = []
    for asked in map(requirements_of.Requirement, importlib.metadata.requires(distribution) or ()):
        of_extra = re.fullmatch('extra == "([^"]+)"', str(asked.marker or ""))
        if of_extra or not asked.marker:
            extra = of_extra[1] if of_extra else None
            found.append(Requirement(canonicalize_name(asked.name), str(asked.specifier), extra))
    return found


def fits(version: str, bounds: str) -> bool:
    """Is a version within bounds? One before a release counts as that release, and one that cannot be read is not.

    >>> fits("2.13.0+cpu", ">=2.11,<2.14"), fits("5.30", "<5.25,>=5.17")
    (True, False)
    """
    try:
        found = Version(version.rstrip("+"))  # Python ends with it where it was built from changed sources
    except InvalidVersion:
        return False
    return any(SpecifierSet(bounds).contains(one, prereleases=True) for one in (found, found.base_version))


def _version_lines(asked: Iterable[Requirement]) -> list[str]:
    """Python, tropd, and each package that the core, the trainer or vLLM asks for."""
    bounds = importlib.metadata.metadata("tropd")["Requires-Python"] or ""
    python = platform.python_version()
    lines = [
        f"{'python':<16} {python:<16} {'' if fits(python, bounds) else 'NOT '}{bounds}",
        f"{'tropd':<16} {installed('tropd')}",
    ]
    shown = {r.name: r for r in asked if r.extra in (None, "train", "vllm") and r.name != "tropd"}
    for name, requirement in shown.items():
        version = installed(name)
        state = "not installed" if version is None else version
        wrong = version is not None and not fits(version, requirement.bounds)
        lines.append(f"{name:<16} {state:<16} {'NOT ' if wrong else ''}{requirement.bounds}")
    return lines


def find_conflicts(names: Iterable[str]) -> Iterable[str]:
    """Sentences: which of these distributions, as installed, ask for another version of each other."""
    names = sorted({*names, "tropd"})
    for name in names:
        if installed(name) is None:
            continue
        for requirement in requirements(name):
            version = installed(requirement.name) if requirement.name in names and not requirement.extra else None
            if version is not None and not fits(version, requirement.bounds):
                asked = f"{requirement.name}{requirement.bounds}"
                yield f"{name} {installed(name)} needs {asked}, but {version} is installed."


# ---------------------------------------------------------------------- the machine


def machine() -> list[tuple[str, str]]:
    """Cores, memory, disk and GPUs."""
    disk = shutil.disk_usage(Path.cwd())
    return [
        ("system", f"{platform.system()} {platform.machine()}, {console.cores()} cores"),
        ("memory", _memory()),
        ("disk", f"{disk.free / 1e9:.1f} GB free here"),
        ("GPU", "; ".join(gpus()) or "none found"),
    ]


def _memory() -> str:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, AttributeError):
        return "not known"
    return f"{total / 1e9:.1f} GB"


def gpus() -> list[str]:
    """Names and memory of the GPUs that a driver tells of."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return ["Apple silicon"]
    if (tool := shutil.which("nvidia-smi")) is not None:
        asked = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=SECONDS_FOR_A_DRIVER, check=False)
        return done.stdout.strip().splitlines() if done.returncode == 0 else []
    return ["an AMD GPU (ROCm)"] if Path("/dev/kfd").exists() else []


def torch_build() -> str | None:
    """What the installed PyTorch computes on: `cuda 12.8`, `rocm 6.4`, `cpu`; `None` where it is not installed."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    version = Path(found.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    for name, words in (("cuda", "cuda"), ("hip", "rocm")):
        if (read := re.search(rf"^{name}\b[^=\n]*=\s*'([^']+)'", text, re.MULTILINE)) is not None:
            return f"{words} {read[1]}"
    return "cpu"


# ---------------------------------------------------------------------- what can run


def abilities(asked: Iterable[Requirement]) -> list[Ability]:
    """What one may want to run here; training first."""
    asked = list(asked)
    train = _part("training, check, generate (CPU)", asked, "train")
    found = [train, _on_gpu(train), _part("tropd evaluate: graders", asked, "eval")]
    what = "rollouts by vLLM"
    found.append(_part(what, asked, "vllm") if sys.platform == "linux" else Ability(what, "vLLM runs on Linux", ""))
    found.append(_demo(train))
    for tracker in TRACKERS:
        here = installed(tracker) is not None
        lacking, command = ("", "") if here else ("not installed", f"pip install {tracker}")
        found.append(Ability(f"report_to: {tracker}", lacking, command))
    return found


def _part(what: str, asked: Iterable[Requirement], extra: str) -> Ability:
    needed = [r for r in asked if r.extra in (None, extra) and r.name != "tropd"]
    absent = [r.name for r in needed if installed(r.name) is None]
    wrong = [f"{r.name} {v}" for r in needed if (v := installed(r.name)) is not None and not fits(v, r.bounds)]
    lacking = [f"without {', '.join(absent)}"] if absent else []
    lacking += [f"wrong version: {', '.join(wrong)}"] if wrong else []
    return Ability(what, "; ".join(lacking), f"pip install 'tropd[{extra}]'" if lacking else "")


def _on_gpu(train: Ability) -> Ability:
    what, build, found = "training on a GPU", torch_build(), gpus()
    if not found:
        return Ability(what, "no GPU found (recipe:demo and small pairs run on the CPU)", "")
    if build == "cpu" and found != ["Apple silicon"]:
        return Ability(
            what, "PyTorch is the CPU build", "pip install --force-reinstall torch  # from a CUDA or ROCm index"
        )
    return Ability(what, train.lacking, train.command)


def _demo(train: Ability) -> Ability:
    from ..proving_ground.family import GENERALIST, STUDENT, family_path

    what = "the demonstration"
    absent = [name for name in (STUDENT, GENERALIST) if not (family_path() / name / "model.safetensors").is_file()]
    if absent:
        return Ability(what, f"without the shipped models {', '.join(absent)}", "")
    return Ability(what, train.lacking, train.command)
