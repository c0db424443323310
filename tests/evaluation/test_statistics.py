"""Intervals by hand."""

import math

import pytest

from tropd.evaluation.statistics import estimate, t_quantile


def test_three_seeds_by_hand():
    """1, 2, 3: deviation 1, standard error 1/√3, t of two degrees of freedom 4.303."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))


def test_one_run_has_no_interval():
    found = estimate([5.0])
    assert (found.mean, found.n) == (5.0, 1) and math.isnan(found.standard_error) and math.isnan(found.half_width)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (3, 3.182), (10, 2.228), (11, 2.201), (19, 2.093), (30, 2.042), (120, 1.980)]
)
def test_quantiles_of_students_t_are_those_of_printed_tables(freedom, quantile):
    assert t_quantile(freedom) == quantile


def test_an_interval_of_twelve_seeds_is_that_of_eleven_degrees_of_freedom():
    found = estimate([float(n) for n in range(12)])
    assert found.half_width == pytest.approx(2.201 * found.standard_error)
