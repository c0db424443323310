"""The arrows between the layers, read from the source with `ast`, so that holding them needs no torch.

An import counts wherever it stands: inside a function and under TYPE_CHECKING as well.
"""

import ast
import doctest
import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tropd

PACKAGE = Path(__file__).parents[1] / "src" / "tropd"

# What each layer may import of ours. A layer that is not listed sits above these and imports what it likes.
OURS = {
    "objective": {"objective"},
    "verl": {"verl", "objective"},
    "models": {"models", "objective"},
    "rollout": {"rollout", "objective", "models"},
    "teacher": {"teacher", "objective", "models"},
    "training": {"training", "evaluation", "objective", "rollout", "teacher", "models"},
    "serving": {"serving", "teacher", "rollout", "objective", "models"},
    "data": {"data"},
    "environments": {"environments"},
    "engines": {"engines", "rollout", "teacher", "objective", "models"},
    "evaluation": {"evaluation", "data", "report", "engines", "rollout", "teacher", "objective", "models"},
    "planning": {"planning", "training", "teacher", "objective", "models"},
    "preflight": {"preflight", "training", "teacher", "objective", "rollout", "evaluation", "models"},
    "run": {"run", "data", "planning", "preflight", "training", "teacher", "objective", "models"},
    "report": {"report"},
    "comparison": {
        "comparison",
        "report",
        "run",
        "data",
        "preflight",
        "evaluation",
        "engines",
        "training",
        "teacher",
        "rollout",
        "objective",
        "proving_ground",
        "models",
    },
}
# What every layer may import, as it imports nothing of ours: how messages and tools are read from rows, which data,
# teacher and trainer must agree about, what was probably meant by a name, how text of others is shown, what an extra
# brings, where the package's own files lie, and how code of the user's own is imported.
LEAVES = {"atomic_files", "extras", "messages", "own_code", "shipped", "suggestions", "visible"}
# What the mathematics may import of others, and exceptions as "file: module" with the reason beside them.
THEIRS_IN_OBJECTIVE = {"torch", "numpy"} | sys.stdlib_module_names
EXCEPTIONS_IN_OBJECTIVE: set[str] = set()
# jinja2 escapes whatever is put into a page; by hand one place would be forgotten.
THEIRS_OF_REPORT = sys.stdlib_module_names | {"jinja2"}


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """The absolute dotted names `source` imports; `from a import b` gives `a.b`, as b may be a module."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + node.module.split(".") if node.module else base
            yield from (".".join([*base, alias.name]) for alias in node.names)


def imports_of_layer(layer: str) -> list[tuple[str, str]]:
    """(file, imported name) for every import in the layer."""
    found = []
    for path in sorted((PACKAGE / layer).rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        file = path.relative_to(PACKAGE).as_posix()
        found += [(file, name) for name in imports(path.read_text(encoding="utf-8"), module, is_package)]
    return found


@pytest.mark.parametrize(
    ("line", "module", "is_package", "names"),
    [
        ("import torch.nn as nn, math", "tropd.objective.loss", False, ["torch.nn", "math"]),
        ("from .head.layer import Head", "tropd.objective.loss", False, ["tropd.objective.head.layer.Head"]),
        ("from .head.layer import Head", "tropd.objective", True, ["tropd.objective.head.layer.Head"]),
        ("from ..training import config", "tropd.objective.loss", False, ["tropd.training.config"]),
        ("from .. import data", "tropd.rollout", True, ["tropd.data"]),
        ("if True:\n  from tropd import METHODS", "tropd.teacher.local", False, ["tropd.METHODS"]),
    ],
)
def test_an_import_is_resolved_to_its_absolute_name(line, module, is_package, names):
    assert list(imports(line, module, is_package)) == names


@pytest.mark.parametrize("layer", OURS)
def test_a_layer_imports_only_the_layers_below_it(layer):
    found = imports_of_layer(layer)
    assert found, f"nothing is imported in {PACKAGE / layer}: has the layer moved?"
    ours = [(file, name.split(".")) for file, name in found if name.split(".")[0] == "tropd"]
    # `tropd` itself offers names of every layer, so only its version may be taken from there.
    allowed = OURS[layer] | LEAVES | {"__version__"}
    wrong = [f"{file}: {'.'.join(name)}" for file, name in ours if len(name) < 2 or name[1] not in allowed]
    assert not wrong, f"tropd.{layer} may import {sorted(OURS[layer])} of ours, and nothing else: {wrong}"


def test_the_root_of_training_has_at_most_ten_files():
    assert len(list((PACKAGE / "training").glob("*.py"))) <= 10


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_a_leaf_imports_the_standard_library_alone(leaf):
    found = list(imports((PACKAGE / f"{leaf}.py").read_text(encoding="utf-8"), f"tropd.{leaf}", is_package=False))
    assert all(name.split(".")[0] in sys.stdlib_module_names for name in found), found


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_the_examples_of_a_leaf_run(leaf):
    failed, run = doctest.testmod(importlib.import_module(f"tropd.{leaf}"))
    assert run and not failed


def test_the_objective_needs_only_torch_and_numpy():
    allowed = THEIRS_IN_OBJECTIVE | {"tropd"}
    wrong = {f"{f}: {name}" for f, name in imports_of_layer("objective") if name.split(".")[0] not in allowed}
    assert wrong <= EXCEPTIONS_IN_OBJECTIVE, f"tropd.objective is pure PyTorch: {sorted(wrong)}"


def test_the_report_needs_only_the_standard_library_and_templates():
    wrong = {f"{f}: {n}" for f, n in imports_of_layer("report") if n.split(".")[0] not in {"tropd", *THEIRS_OF_REPORT}}
    assert not wrong, f"tropd.report makes text from data: {sorted(wrong)}"


def test_a_comparison_is_planned_watched_and_reported_without_torch():
    code = (
        "import sys, tropd.comparison.run, tropd.comparison.report.comparison_page, tropd.comparison.report.results; "
        "import tropd.comparison.cell.worker; "
        "print(*sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_tropd_does_not_import_torch():
    code = "import sys, tropd; print(*sorted({'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_version_is_that_of_the_distribution():
    assert tropd.__version__ == importlib.metadata.version("tropd")
