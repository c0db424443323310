"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

from tropd import objective

MODULES = [module.name for module in pkgutil.walk_packages(objective.__path__, "tropd.objective.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", sorted(set(objective.__all__) - {"METHODS", "SETTINGS"}))
def test_every_public_name_has_an_example(name):
    assert ">>>" in getattr(objective, name).__doc__


def test_every_exported_name_can_be_loaded():
    assert all(callable(getattr(objective, name)) or name in ("METHODS", "SETTINGS") for name in objective.__all__)
