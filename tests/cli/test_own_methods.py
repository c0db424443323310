"""A method of one's own, as docs/add_a_method.md has it: in a file, on a command line, in a plan, and resumed."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tropd.comparison.layout import Layout
from tropd.comparison.plan_file import read_plan
from tropd.comparison.run import record_plan

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_method.md").read_text(encoding="utf-8")
MODULE, FILE, PLAN = (
    re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]
    for language, number in (("python", 0), ("yaml", 0), ("yaml", 1))
)
OWN = "my_methods:CAUTIOUS"


@pytest.fixture
def change(monkeypatch, tmp_path):
    """Writes `my_methods.py` of the page, with some text in the place of another, as a new process would read it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(old: str = "", new: str = "") -> None:
        assert old in MODULE
        Path("my_methods.py").write_text(MODULE.replace(old, new) if old else MODULE, encoding="utf-8")
        sys.modules.pop("my_methods", None)
        importlib.invalidate_caches()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write()
    yield write
    sys.modules.pop("my_methods", None)


def test_it_is_explained_as_any_other(change, tropd):
    told = tropd("methods", OWN)
    assert told.code == 0 and told.out.startswith("cautious: K1 with max(r, −3)")
    assert "K1 with max(r, -3) where u < min(ρ, 1)" in told.out and "top-16 forward KL" in told.out
    assert json.loads(tropd("methods", OWN, "--json").out)["cautious"]["advantage_floor"] == -3.0


def test_a_run_holds_its_values_and_is_not_resumed_with_others(workspace, change, tropd):
    run = workspace.text("run.yaml", FILE)
    saving = {"method": None, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    assert tropd("train", "--config", run, *workspace.fields(**saving)).code == 0
    held = json.loads((workspace.root / "out" / "run.json").read_text())["method"]
    assert (held["name"], held["outlier"], held["advantage_floor"]) == ("cautious", "clip", -3.0)
    change("advantage_floor=-3.0", "advantage_floor=-1.0")
    go_on = workspace.fields(**saving | {"max_steps": 3, "resume_from_checkpoint": "latest"})
    refused = tropd("train", "--config", run, *go_on)
    assert refused.code == 2 and "advantage_floor -3.0 → -1.0" in refused.err
    change()
    assert tropd("train", "--config", run, *go_on).code == 0


@pytest.mark.parametrize("method", ["my_methods:CAREFUL", "my_method:CAUTIOUS", "my_methods:Method"])
def test_what_is_no_method_is_refused_with_its_place(workspace, change, tropd, method):
    run = workspace.text("run.yaml", f"seed: 1\nmethod: {method}\n")
    refused = tropd("check", "--config", run, "--student", "student", "--teacher", "teacher")
    assert refused.code == 2 and f"run.yaml, line 2: method is '{method}'" in refused.err


def test_a_comparison_holds_its_values_too(change, tmp_path):
    data = {
        "settings": {"one": {"domains": ["mathematics"], "student": "s", "teacher": "t"}},
        "methods": yaml.safe_load(PLAN)["methods"],
        "seeds": [1],
        "student_tokens": 8,
        "prompts": {"train": 1, "validation": 1, "test": 1},
        "max_length": 8,
        "learning_rates": [1.0e-3],
    }
    layout = Layout(tmp_path / "out")
    record_plan(read_plan(data), layout, None)
    assert layout.read_state()["own_methods"]["cautious"]["fkl_top_k"] == 16
    layout.setting("one").mkdir(parents=True)
    assert not layout.is_empty()
    record_plan(read_plan(data), layout, None)
    change("fkl_top_k=16", "fkl_top_k=32")
    with pytest.raises(ValueError, match=r"methods\.cautious\.fkl_top_k \(16, now 32\)"):
        record_plan(read_plan(data), layout, None)
