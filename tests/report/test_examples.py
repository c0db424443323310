"""The examples in docstrings of what a run is looked at with."""

import doctest

import pytest

from tropd.cli import doctor
from tropd.evaluation import card
from tropd.report import axes, choice, markdown, outcome
from tropd.training.logging import marked

MODULES = [axes, card, choice, markdown, outcome, marked, doctor]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_run(module):
    failed, run = doctest.testmod(module)
    assert run and not failed
