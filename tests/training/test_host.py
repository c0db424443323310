"""The contract with TRL: the hooks are where we think they are, and a sentence says so when one is not."""

import ast
import importlib.metadata
import inspect
import re
import textwrap
import tomllib
from pathlib import Path

import pytest
from trl import GRPOTrainer

from training import trl_contract
from training.trl_contract import ATTRIBUTES, CALLED, EXTENDED, OUTPUTS, OVERRIDDEN, check_host
from tropd.training import rollout_stage, set_up, trainer
from tropd.training.checkpointing import saving
from tropd.training.guards import versions
from tropd.training.rollout_stage import no_reward

ROOT = Path(__file__).parents[2]
HOOKS = OVERRIDDEN | CALLED


def test_the_installed_trl_has_every_hook():
    check_host()


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_with_another_signature_is_reported_by_name(name):
    moved = type("MovedTrainer", (GRPOTrainer,), {name: lambda self, something_else: None})
    with pytest.raises(RuntimeError, match=rf"MovedTrainer\.{name} takes .*something_else.*trl>=1\.16,<1\.17"):
        check_host(moved)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_is_gone_is_reported_by_name(name):
    moved = type("MovedTrainer", (GRPOTrainer,), {name: None})
    with pytest.raises(RuntimeError, match=rf"MovedTrainer has no {name}.*trl>=1\.16,<1\.17"):
        check_host(moved)


@pytest.mark.parametrize("name", EXTENDED)
def test_a_method_to_extend_that_is_gone_is_reported_by_name(name):
    moved = type("MovedTrainer", (GRPOTrainer,), {name: None})
    with pytest.raises(RuntimeError, match=rf"MovedTrainer has no {name}, .*transformers>=5\.17,<5\.25"):
        check_host(moved)


def test_every_method_that_is_extended_is_one_of_the_contract():
    """One that the host no longer has would never be called, and what it mends would be back without a word."""
    ours = {n: m for n, m in vars(trainer.TrOPDTrainer).items() if inspect.isfunction(m) and n != "__init__"}
    extending = {name for name, method in ours.items() if "super()" in inspect.getsource(method)}
    assert extending - {"tokenize_as_host"} <= {*OVERRIDDEN, *EXTENDED}


@pytest.mark.parametrize("renamed", ["another_name", "{name}_2"])
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_renamed_attribute_is_reported_by_name(name, renamed, monkeypatch):
    rename_in_source(monkeypatch, f"self.{name}", f"self.{renamed.format(name=name)}")
    with pytest.raises(RuntimeError, match=rf"no longer sets `{name}`.*trl>=1\.16,<1\.17"):
        check_host()


@pytest.mark.parametrize("key", OUTPUTS)
def test_a_renamed_output_is_reported_by_name(key, monkeypatch):
    rename_in_source(monkeypatch, f'"{key}"', '"another_name"')
    with pytest.raises(RuntimeError, match=rf"no longer returns '{key}'.*trl>=1\.16,<1\.17"):
        check_host()


@pytest.mark.parametrize(
    ("package", "release"), [("trl", "1.17.0"), ("trl", "1.15.2"), ("transformers", "5.25.0.dev0")]
)
def test_another_release_of_the_host_is_refused_by_name(package, release, monkeypatch):
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: release if name == package else installed(name))
    wanted = re.escape(versions.BUILT_ON[package])
    with pytest.raises(RuntimeError, match=rf"^{package} {release} is installed, .*pip install \"{package}{wanted}\""):
        versions.check_host()


def test_the_releases_of_the_host_are_those_that_are_installed_with_tropd():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["train"]
    assert {package + bounds for package, bounds in versions.BUILT_ON.items()} <= set(asked)
    versions.check_host()


def rename_in_source(monkeypatch, old: str, new: str) -> None:
    """TRL as it would read with another name: `check_host` reads the source of what it cannot call."""
    getsource = inspect.getsource
    monkeypatch.setattr(trl_contract.inspect, "getsource", lambda thing: getsource(thing).replace(old, new))


def test_the_contract_names_everything_the_trainer_reads_from_its_host():
    """What is read as `self.name`, or as `trainer.name` by what it hands on to, and only TRL's `__init__` sets."""
    read = names_on_self(inspect.getsource(trainer), ast.Load)
    for handed_on in (rollout_stage, saving, set_up):
        read |= names_on(inspect.getsource(handed_on), ast.Load, {"trainer", "self.trainer"})
    set_by_us = names_on_self(inspect.getsource(trainer.TrOPDTrainer.__init__), ast.Store)
    set_by_host = names_on_self(inspect.getsource(GRPOTrainer.__init__), ast.Store)
    assert (read & set_by_host) - set_by_us - set(ATTRIBUTES) == set()


def test_the_contract_names_every_method_the_trainer_takes_from_its_host():
    read = names_on_self(inspect.getsource(trainer), ast.Load)
    assert {name for name in read & vars(GRPOTrainer).keys() if callable(getattr(GRPOTrainer, name))} <= (
        HOOKS.keys() | vars(trainer.TrOPDTrainer).keys()
    )


def names_on_self(source: str, context: type) -> set[str]:
    return names_on(source, context, {"self"})


def names_on(source: str, context: type, owners: set[str]) -> set[str]:
    """The attributes that are read, or set, of an owner as it is written."""
    return {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, context) and ast.unparse(node.value) in owners
    }


def test_the_reward_of_a_run_without_rewards_is_zero_for_each_completion():
    assert no_reward(["a", "b"], prompts=["x", "y"]) == [0.0, 0.0]
