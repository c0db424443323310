"""Intervals by hand."""

import math

import pytest

from tropd.evaluation.statistics import estimate, paired_difference


def test_three_seeds_by_hand():
    """1, 2, 3: deviation 1, standard error 1/√3, t of two degrees of freedom 4.303."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert not found.excludes_zero


def test_pairing_removes_what_the_seeds_share():
    seeds = [0.0, 10.0, 20.0]
    difference = paired_difference([value - 1 for value in seeds], seeds)
    assert (difference.mean, difference.half_width) == (-1.0, 0.0)
    assert difference.excludes_zero


def test_one_run_has_no_interval_and_excludes_nothing():
    assert not estimate([5.0]).excludes_zero
    assert str(estimate([5.0])) == "5.000"


def test_seeds_that_do_not_pair_are_refused():
    with pytest.raises(ValueError):
        paired_difference([1.0, 2.0], [1.0])
