"""What can be said of the verl plugin where verl is not installed: releases, failures, imports, methods."""

import importlib.metadata
import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

from tropd.cli.main import main
from tropd.objective import METHODS
from tropd.verl import arming
from tropd.verl.after_import import after_import
from tropd.verl.methods import verl_method, verl_methods, why_not

without_verl = pytest.mark.skipif(importlib.util.find_spec("verl") is not None, reason="verl is installed")


@pytest.fixture
def release(monkeypatch):
    """Pretend that a release of verl is installed; nothing waits for its modules afterwards."""
    waiting = list(sys.meta_path)

    def pretend(version: str) -> None:
        of = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "verl" else of(name))

    yield pretend
    sys.meta_path[:] = waiting


def test_the_entry_point_is_the_one_that_verl_looks_for():
    written = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert written["project"]["entry-points"]["verl.plugins"] == {"tropd": "tropd.verl.plugin"}
    assert importlib.util.find_spec("tropd.verl.plugin") is not None


@pytest.mark.parametrize("version", ["0.8.2", "0.10.0.dev0", "1.0"])
def test_a_release_that_is_not_known_is_refused_in_a_sentence(release, capfd, version):
    release(version)
    before = len(sys.meta_path)
    arming.arm()
    assert len(sys.meta_path) == before
    said = capfd.readouterr().err
    assert f"verl {version} is not known" in said and "losses are not registered" in said


def test_a_known_release_is_armed_and_waits_for_its_modules(release, capfd):
    release("0.9.4")
    before = len(sys.meta_path)
    arming.arm()
    assert len(sys.meta_path) == before + len(arming.CHANGES)
    assert "is armed for verl 0.9.4" in capfd.readouterr().err


def test_a_failure_is_printed_before_verl_hides_it(monkeypatch, capfd):
    monkeypatch.setattr(arming, "arm", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        arming.arm_loudly()
    said = capfd.readouterr().err
    assert "could not be armed" in said and "ZeroDivisionError" in said


def test_a_function_with_other_parameters_is_not_wrapped():
    arming.expect(lambda a, b: None, ("a", "b"))
    with pytest.raises(RuntimeError, match=r"takes a, c, and not a, b, as in verl 0\.9\.x"):
        arming.expect(lambda a, c: None, ("a", "b"))


# ---------------------------------------------------------------------- after an import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that is there, and not imported yet."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "late_module.py").write_text("VALUE = 1\n")
    yield tmp_path / "late_module.py"
    sys.modules.pop("late_module", None)


def test_a_module_is_changed_right_after_it_is_imported(module):
    seen = []
    after_import("late_module", lambda found: seen.append(found.VALUE))
    assert seen == [] and "late_module" not in sys.modules
    import late_module

    assert seen == [1] and late_module.__spec__.loader is late_module.__loader__
    after_import("late_module", lambda found: seen.append(found))
    assert seen == [1, late_module]


def test_a_change_that_fails_fails_the_import(module):
    after_import("late_module", lambda found: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("late_module")


def test_a_module_that_fails_is_changed_when_it_is_imported_again(module):
    seen = []
    after_import("late_module", lambda found: seen.append(found.VALUE))
    module.write_text("raise RuntimeError('not yet')\n")
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module("late_module")
    module.write_text("VALUE = 22222\n")
    importlib.invalidate_caches()
    importlib.import_module("late_module")
    assert seen == [22222]


# ---------------------------------------------------------------------- methods


def test_every_method_is_run_or_refused_with_a_reason():
    refused = {name for name, method in METHODS.items() if why_not(method)}
    assert refused == {"gkd", "vopd", "entropy_opd", "reopold_2stage", "tv_opd"}
    assert set(verl_methods()) == set(METHODS) - refused


def test_a_method_that_verl_cannot_run_is_refused_with_those_that_it_can():
    with pytest.raises(ValueError, match=r"'gkd' cannot run in verl: .*Choose another: opd, fkl"):
        verl_method("gkd")
    with pytest.raises(ValueError, match="tau"):
        verl_method("opd", outlier_tau=-1.0)
    with pytest.raises(ValueError, match=r"'vopd' cannot run in verl: .*with baseline=top_k it can"):
        verl_method("vopd")
    assert verl_method("vopd", baseline="top_k").needs_topk
    with pytest.raises(ValueError, match=r"'tv_opd' cannot run in verl: .*with advantage_scale=none it can"):
        verl_method("tv_opd")
    assert verl_method("tv_opd", advantage_scale="none").advantage == "sign"


@without_verl
def test_the_command_says_how_to_install_verl(capfd):
    assert main(["verl"]) == 2
    said = capfd.readouterr().err
    assert "verl is not installed here. Install it along with tropd: pip install 'verl[vllm]==0.9.*'" in said


def test_the_command_says_which_package_of_verls_extras_is_missing(release, tmp_path, monkeypatch, capfd):
    """As `pip install verl` leaves it, whose agent loops import fastapi."""
    package = tmp_path / "verl" / "experimental" / "agent_loop"
    package.mkdir(parents=True)
    (package / "agent_loop.py").write_text("import none_such_web_server\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(arming, "CHANGES", {"verl.experimental.agent_loop.agent_loop": ("", lambda module: None)})
    release("0.9.1")
    assert main(["verl"]) == 2
    said = capfd.readouterr().err
    assert "agent_loop needs the package 'none_such_web_server', which is not. Install verl with" in said
    assert "pip install 'verl[vllm]==0.9.*'" in said
    for name in [name for name in sys.modules if name.split(".")[0] == "verl"]:
        del sys.modules[name]


def test_the_command_refuses_a_release_that_is_not_known(release, capfd):
    release("0.10.0")
    assert main(["verl"]) == 2
    assert "verl 0.10.0 is not known" in capfd.readouterr().err
