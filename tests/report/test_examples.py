"""The examples in docstrings of what a run is looked at with."""

import doctest

import pytest

from tropd.cli import doctor
from tropd.report import axes, choice, outcome
from tropd.training.logging import marked


@pytest.mark.parametrize("module", [axes, choice, outcome, marked, doctor], ids=lambda module: module.__name__)
def test_the_examples_run(module):
    failed, run = doctest.testmod(module)
    assert run and not failed
