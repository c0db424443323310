"""Modules that moved are found by their old names for a release."""

import importlib
import importlib.util
import subprocess
import sys

import pytest

from tropd._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_module_that_it_is_now(old):
    assert importlib.util.find_spec(f"tropd.{MOVED[old]}") is not None
    sys.modules.pop(f"tropd.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"tropd.{old} is tropd.{MOVED[old]} now"):
        found = importlib.import_module(f"tropd.{old}")
    assert found is importlib.import_module(f"tropd.{MOVED[old]}") and found.__spec__.name == f"tropd.{MOVED[old]}"


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"tropd\.rollout\.nowhere"):
        importlib.import_module("tropd.rollout.nowhere")


def test_names_are_imported_from_there_as_before():
    code = (
        "from tropd.rollout.addressed import AddressedNoise; from tropd.compression import keep_layers; print('found')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "found\n"
