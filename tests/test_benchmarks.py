"""The suite of benchmarks: what it compares, and that the commands it runs are ones that its scripts take."""

import doctest
import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def suite():
    return load("suite")


def test_what_moved_is_told_as_its_examples_say(suite):
    assert doctest.testmod(suite) == (0, 1)


def test_the_noise_of_a_shared_machine_has_not_moved(suite):
    assert suite.moved({"a": 1.0}, {"a": 1.09}) == []
    assert suite.moved({"a": 1.0}, {"a": 0.85}) == ["a: 1.00 -> 0.85 (-15%)"]


@pytest.mark.parametrize("kind", ["CPU", "GPU"])
def test_every_option_of_the_suite_is_one_of_its_scripts(suite, kind, monkeypatch, capsys):
    for script, *options in getattr(suite, kind).values():
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setattr(sys, "argv", [script, *options, "--help"])
        with pytest.raises(SystemExit) as left:
            load(script.removesuffix(".py")).main()
        assert left.value.code == 0, script
        known = capsys.readouterr().out
        assert [option for option in options if option.startswith("--") and option not in known] == []
