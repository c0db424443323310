"""Intervals by hand."""

import math

import pytest

from tropd.evaluation.statistics import estimate


def test_three_seeds_by_hand():
    """1, 2, 3: deviation 1, standard error 1/√3, t of two degrees of freedom 4.303."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))


def test_one_run_has_no_interval():
    found = estimate([5.0])
    assert (found.mean, found.n) == (5.0, 1) and math.isnan(found.standard_error) and math.isnan(found.half_width)
