"""What the wheel holds, from pyproject.toml's own words and the files in the tree; nothing is built."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

from tropd.proving_ground.family import IN_THE_WHEEL, MODELS, family_path

ROOT = Path(__file__).resolve().parents[1]
WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
    "wheel"
]
MOST_BYTES = 8_000_000


def in_the_wheel(path: Path) -> bool:
    """Is a file below the packages, and neither it nor a folder above it left out?"""
    above = ["/" + each.relative_to(ROOT).as_posix() for each in (path, *path.parents) if each.is_relative_to(ROOT)]
    left_out = any(fnmatch(name, pattern) for name in above for pattern in WHEEL["exclude"])
    return path.is_file() and "__pycache__" not in path.parts and not left_out


def test_the_wheel_stays_small():
    """Before it is compressed."""
    files = [path for package in WHEEL["packages"] for path in (ROOT / package).rglob("*") if in_the_wheel(path)]
    assert len(files) > 150 and sum(path.stat().st_size for path in files) < MOST_BYTES


def test_the_wheel_has_the_models_of_the_demonstration_alone():
    weights = [family_path() / name / "model.safetensors" for name in MODELS]
    assert {path.parent.name for path in weights if in_the_wheel(path)} == set(IN_THE_WHEEL)
