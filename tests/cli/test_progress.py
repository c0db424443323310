"""The time left of a training: its steps, and its evaluations once one was timed."""

import pytest

from tropd.cli.progress import Pace


@pytest.fixture
def pace():
    found = Pace(steps=10, every=5)
    found.begin(100.0, 0)
    return found


def test_before_the_first_step_nothing_is_known(pace):
    assert pace.seconds_left() is None


def test_steps_alone_are_forecast_until_an_evaluation_was_timed(pace):
    pace.step(104.0, 2)
    assert pace.seconds_left() == pytest.approx(8 * 2.0)


def test_evaluations_to_come_are_part_of_the_time_left_and_none_of_a_steps(pace):
    pace.step(110.0, 5)
    pace.evaluated(30.0)  # after step 5
    pace.step(142.0, 6)  # 12 s for 6 steps, 30 s for the evaluation
    assert pace.seconds_left() == pytest.approx(4 * 2.0 + 30.0)
    pace.step(150.0, 10)
    assert pace.seconds_left() == pytest.approx(30.0), "the one due now is still to come"


def test_a_resumed_run_counts_from_where_it_goes_on():
    pace = Pace(steps=10)
    pace.begin(0.0, 6)
    pace.step(3.0, 7)
    assert pace.seconds_left() == pytest.approx(9.0)


def test_data_sets_that_are_evaluated_after_one_step_are_one_evaluation(pace):
    pace.step(110.0, 5)
    pace.evaluated(10.0)
    pace.evaluated(20.0)
    pace.step(142.0, 6)
    assert pace.seconds_left() == pytest.approx(4 * 2.0 + 30.0)
