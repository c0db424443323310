"""When a rollout counts as repetitive, and when as collapsed."""

import pytest

from tropd.training.records import REPEAT_PERIOD, REPEAT_TIMES, is_collapsed, is_repetitive

EOS = 2


@pytest.mark.parametrize("period", [1, 2, 5, REPEAT_PERIOD])
def test_a_cycle_at_the_end_counts_when_it_returned_often_enough(period):
    cycle = list(range(10, 10 + period))
    assert is_repetitive([7, 8, 9, *cycle * REPEAT_TIMES])
    assert not is_repetitive([7, 8, 9, *cycle * (REPEAT_TIMES - 1)])


def test_a_cycle_longer_than_the_longest_is_not_looked_for():
    cycle = list(range(10, 11 + REPEAT_PERIOD))
    assert not is_repetitive(cycle * REPEAT_TIMES)
    assert is_repetitive(cycle * REPEAT_TIMES, max_period=REPEAT_PERIOD + 1)


def test_a_cycle_that_was_left_again_does_not_count():
    assert not is_repetitive([7] * 40 + [8])


def test_nothing_but_an_eos_is_collapsed_and_a_short_answer_is_not():
    assert is_collapsed([], [EOS]) and is_collapsed([EOS], [EOS])
    assert not is_collapsed([7, EOS], [EOS])


def test_stopping_at_once_after_a_teachers_prefix_is_an_answer():
    assert not is_collapsed([EOS], [EOS], guided=True)
    assert is_collapsed([7] * REPEAT_TIMES, [EOS], guided=True)


def test_repetition_before_the_eos_is_collapsed_too():
    assert is_collapsed([7] * REPEAT_TIMES + [EOS], [EOS])
