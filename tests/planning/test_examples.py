"""The examples in the docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["memory", "render", "shape"])
def test_examples_of(name):
    found = doctest.testmod(importlib.import_module(f"tropd.planning.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
