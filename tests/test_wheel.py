"""What the wheel holds and wants, by pyproject.toml and the files in the tree; the slow test builds and installs it."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zlib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import hatch_build
from tropd.extras import EXTRA_OF
from tropd.proving_ground.family import IN_THE_WHEEL, MODELS, family_path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
MOST_BYTES = 8_000_000


def in_the_wheel(path: Path) -> bool:
    """Is a file below the packages, and neither it nor a folder above it left out?"""
    above = ["/" + each.relative_to(ROOT).as_posix() for each in (path, *path.parents) if each.is_relative_to(ROOT)]
    left_out = any(fnmatch(name, pattern) for name in above for pattern in WHEEL["exclude"])
    return path.is_file() and "__pycache__" not in path.parts and not left_out


def test_the_wheel_stays_small():
    """As it is compressed there."""
    files = [path for package in WHEEL["packages"] for path in (ROOT / package).rglob("*") if in_the_wheel(path)]
    assert len(files) > 150 and sum(len(zlib.compress(path.read_bytes())) for path in files) < MOST_BYTES


def test_the_wheel_has_the_models_of_the_demonstration_alone():
    weights = [family_path() / name / "model.safetensors" for name in MODELS]
    assert {path.parent.name for path in weights if in_the_wheel(path)} == set(IN_THE_WHEEL)


def test_the_readme_of_the_package_has_no_link_into_the_repository():
    """Built by the hook that pyproject.toml names; the words stay."""
    metadata: dict = {}
    hatch_build.Readme(str(ROOT), {}).update(metadata)
    shown = metadata["readme"]["text"]
    assert "](docs/" not in shown and "![" not in shown and not re.search(r"\]\((?!https?:)", shown)
    assert "engines (docs/engines.md)" in shown and 'pip install "tropd[train]"' in shown
    assert PYPROJECT["project"]["dynamic"] == ["readme"] and "custom" in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]


def test_every_extra_brings_the_modules_that_a_missing_one_is_told_by():
    extras = PYPROJECT["project"]["optional-dependencies"]
    for module, extra in EXTRA_OF.items():
        wanted = {re.split(r"[^\w-]", each, maxsplit=1)[0].replace("-", "_") for each in extras[extra]}
        brought_by = {"antlr4": "antlr4_python3_runtime", "latex2sympy2_extended": "math_verify"}
        brought_by |= dict.fromkeys(("langdetect", "nltk"), "if_verifiable")
        assert brought_by.get(module, module) in wanted, f"tropd[{extra}] does not bring {module}"


# The light core in a process where nothing of an extra can be imported.
LIGHT = """
import sys
from importlib.abc import MetaPathFinder
from tropd.extras import EXTRA_OF

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in EXTRA_OF:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import tropd.objective
from tropd.cli.main import main

out = sys.argv[1]
published = ["recipes/proving_ground/methods.yaml", "--from", "docs/assets/proving-ground-methods.json"]
assert main(["methods"]) == 0 and main(["recipes"]) == 0
assert main(["compare", *published, "--out", out, "--report-only"]) == 0
assert main(["train", "--student", "a", "--teacher", "b", "--data", "c", "--output_dir", out]) == 2
try:
    tropd.TrOPDTrainer
except ImportError as error:
    print(error, file=sys.stderr)
"""


def test_the_light_core_reports_and_says_what_a_command_wants(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'error: transformers is not installed. It comes with: pip install "tropd[train]"' in done.stderr
    assert "TrOPDTrainer: " in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out/report.html").is_file() and "lora_one_gpu" in done.stdout


def run(*command: str, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=clean, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


SMALLEST = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--max_completion_length", "24"]


@pytest.mark.slow
def test_the_built_wheel_works_in_a_fresh_environment_outside_the_checkout(tmp_path):
    """First the light core alone, then the trainer beside it."""
    import torch

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=ROOT)
    wheel = next(tmp_path.glob("*.whl"))
    venv.create(tmp_path / "fresh", with_pip=True)
    python, tropd = (str(tmp_path / "fresh/bin" / name) for name in ("python", "tropd"))
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    try:
        run(*install, f"torch=={torch.__version__.split('+')[0]}", cwd=tmp_path)
    except AssertionError as error:
        if "No matching distribution" in str(error) or "connection" in str(error).lower():
            pytest.skip("no package index can be reached")
        raise
    run(*install, str(wheel), cwd=tmp_path)
    assert "transformers" not in run(python, "-m", "pip", "list", cwd=tmp_path)
    assert "K1" in run(tropd, "methods", cwd=tmp_path) and "lora_one_gpu" in run(tropd, "recipes", cwd=tmp_path)
    run(*install, f"{wheel}[train]", cwd=tmp_path)
    told = run(tropd, "train", "--config", "recipe:demo", "--output_dir", "out", *SMALLEST, cwd=tmp_path)
    assert (tmp_path / "out/model.safetensors").is_file() and "Traceback" not in told
    run(*install, "pytest", cwd=tmp_path)
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "--import-mode=importlib",
        "-o", f"pythonpath={ROOT / 'tests'}", str(ROOT / "tests/objective/test_regions.py"), cwd=tmp_path)  # fmt: skip
