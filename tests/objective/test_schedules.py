"""Prefix lengths against the twin, which computes α·L in exact fractions."""

import itertools

import pytest

import reference
from tropd import objective

SIZES = [(10, 10), (40, 100), (100, 8192), (1000, 1024), (7, 5), (1, 8), (0, 8)]


@pytest.mark.parametrize("schedule", reference.SCHEDULES)
@pytest.mark.parametrize("total_steps", [1, 3, 10, 200])
def test_the_fraction_equals_its_twin(schedule, total_steps):
    for step in range(total_steps + 2):
        twin = float(reference.prefix_share(step, total_steps, schedule))
        assert objective.guidance_fraction(schedule, step, total_steps) == pytest.approx(twin, abs=1e-15)


@pytest.mark.parametrize("min_tail", [1, 4])
@pytest.mark.parametrize("total_steps", [1, 3, 10, 200])
@pytest.mark.parametrize("reading", ["cap", "share"])
@pytest.mark.parametrize("schedule", reference.SCHEDULES)
def test_the_prefix_length_equals_its_twin(schedule, reading, total_steps, min_tail):
    for response_length, max_length in SIZES:
        for step in range(total_steps + 1):
            fraction = objective.guidance_fraction(schedule, step, total_steps)
            lengths = {"response_length": response_length, "max_length": max_length, "min_tail": min_tail}
            ours = objective.prefix_length(reading, fraction, **lengths)
            twin = reference.prefix_length(step, total_steps, schedule=schedule, reading=reading, **lengths)
            assert ours == twin, f"step {step} of {total_steps}, L = {response_length}, L_max = {max_length}"


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_an_annealed_schedule_falls_from_everything_to_nothing(schedule):
    fractions = [objective.guidance_fraction(schedule, step, 200) for step in range(201)]
    assert fractions[0] == 1.0 and fractions[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(fractions))
    assert objective.guidance_fraction(schedule, 250, 200) == 0.0


def test_the_two_readings_differ_where_responses_are_short():
    # α = ½ at half time: cap min(4096, 99) leaves one token to the student, share shows half of the response.
    lengths = {"response_length": 100, "max_length": 8192}
    assert objective.prefix_length("cap", 0.5, **lengths) == 99
    assert objective.prefix_length("share", 0.5, **lengths) == 50


@pytest.mark.parametrize("reading", ["cap", "share"])
def test_the_student_always_has_something_to_write(reading):
    for response_length, max_length in SIZES:
        for min_tail in (1, 3):
            length = objective.prefix_length(
                reading, 1.0, response_length=response_length, max_length=max_length, min_tail=min_tail
            )
            assert length >= 0
            assert length == 0 or length <= min(response_length, max_length) - min_tail


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("whole", 0.5, 1), "guidance_length is 'whole'"),
        (("cap", 0.5, 0), "tail is 0"),
    ],
)
def test_nonsense_is_refused(arguments, words):
    reading, fraction, min_tail = arguments
    with pytest.raises(ValueError, match=words):
        objective.prefix_length(reading, fraction, response_length=4, max_length=8, min_tail=min_tail)


def test_an_unknown_schedule_or_an_empty_training_is_refused():
    with pytest.raises(ValueError, match="sine"):
        objective.guidance_fraction("sine", 0, 10)
    with pytest.raises(ValueError, match="total_steps is 0"):
        objective.guidance_fraction("cosine", 0, 0)
