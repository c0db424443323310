"""The course of a run: means of stretches by hand, and lines over seeds that do not wrong who ended early."""

from itertools import pairwise

import pytest

from tropd.atomic_files import append_jsonl
from tropd.comparison.report.curves import CURVES, line_of
from tropd.comparison.report.logged_series import STRETCHES, course_of, stretches_of


@pytest.fixture
def course(tmp_path):
    """Of a run that logged some steps."""

    def make(steps):
        append_jsonl(tmp_path / "metrics.jsonl", [{"response/length": 1.0, **step} for step in steps])
        return course_of(tmp_path)

    return make


def run(course, values):
    return stretches_of(course([{"step": n, "trust/fraction": value} for n, value in enumerate(values, start=1)]))


def test_a_short_run_has_every_step(course):
    found = course([{"step": n, "grad_norm": 10.0 * n} for n in (1, 2, 3)])
    assert found["step"] == [1, 2, 3] and found["grad_norm"] == [10.0, 20.0, 30.0]


def test_a_long_run_has_the_means_of_its_stretches_and_no_step_is_lost(course):
    found = course([{"step": n, "kl/k1": float(n)} for n in range(1, 2 * STRETCHES + 1)])
    assert found["step"] == found["kl/k1"] == [2 * n + 1.5 for n in range(STRETCHES)]


def test_stretches_of_uneven_lengths_differ_by_one_step(course):
    steps = course([{"step": n} for n in range(1, 73)])["step"]
    assert len(steps) == STRETCHES
    assert {round(later - step, 1) for step, later in pairwise(steps)} <= {2, 2.5, 3}
    assert steps[0] == 1.5 and steps[-1] == 71 and steps[9] < 24.5 < steps[10], "a third ends where a stretch does"


def test_what_was_not_logged_is_absent_and_no_zero(course):
    found = course([{"step": 1, "grad_norm": None}, {"step": 2, "grad_norm": 4.0}])
    assert found["grad_norm"] == [None, 4.0] and found["loss/trust"] == [None, None]
    assert stretches_of(found) == [
        {"step": 1, "response/length": 1},
        {"step": 2, "response/length": 1, "grad_norm": 4.0},
    ]


def test_lines_that_are_no_steps_do_not_count(tmp_path):
    append_jsonl(tmp_path / "metrics.jsonl", [{"step": 3, "train_runtime": 1.0}])
    assert course_of(tmp_path) is None and stretches_of(None) == []


def test_a_line_is_the_mean_over_seeds_with_the_least_and_the_most(tmp_path):
    runs = [_steps([0.2, 0.4]), _steps([0.6, 0.5])]
    line = line_of("opd", 0, runs, CURVES[0])
    assert line.xs == [1, 2] and line.means == pytest.approx([0.4, 0.45])
    assert line.lows == [0.2, 0.4] and line.highs == [0.6, 0.5]


def _steps(values):
    return [{"step": n, "trust/fraction": value} for n, value in enumerate(values, start=1)]


def test_seeds_of_nearly_as_many_steps_meet_in_every_stretch(course, tmp_path):
    """72 and 75 steps, stretches of 2.4 and 2.5: what both have is at the same part of the run."""
    runs = []
    for steps in (72, 75):
        folder = tmp_path / str(steps)
        values = [{"step": n, "response/length": 1.0, "trust/fraction": n / steps} for n in range(1, steps + 1)]
        append_jsonl(folder / "metrics.jsonl", values)
        runs.append(stretches_of(course_of(folder)))
    line = line_of("opd", 0, runs, CURVES[0])
    assert len(line.xs) == STRETCHES
    assert all(high - low < 0.02 for low, high in zip(line.lows, line.highs, strict=True))


def test_a_run_that_ended_early_is_drawn_at_its_own_steps():
    whole, early = _steps([0.5] * 20), _steps([0.1] * 4)
    line = line_of("opd", 0, [whole, early], CURVES[0])
    assert line.lows == [0.1] * 4 + [0.5] * 16, "not stretched over the steps it never took"
    line = line_of("opd", 0, [early, early, whole], CURVES[0])
    assert line.xs == [1, 2, 3, 4], "beyond, less than half of the seeds are left"
