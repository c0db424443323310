"""A small plan as plain data, and a comparison whose workers train nothing."""

import sys
from functools import partial
from pathlib import Path

import pytest

from tropd.comparison.layout import Layout
from tropd.comparison.plan_file import read_plan
from tropd.comparison.run import publish, record_plan
from tropd.comparison.schedule import Schedule

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


RATES = [1.0e-3, 3.0e-3]


def plan_as_data():
    """One rate, so without a grid: two methods with two seeds, four cells."""
    return {
        "settings": {"one": {"domains": ["mathematics"], "student": "student", "teacher": "generalist"}},
        "methods": {"opd": None, "tropd": {"guidance_beta": 0.01}},
        "seeds": [1, 2],
        "student_tokens": 1000,
        "prompts": {"train": 8, "validation": 4, "test": 4},
        "max_length": 16,
        "learning_rates": RATES[:1],
        "prompts_per_step": 2,
        "rollouts_per_prompt": 2,
    }


def compare_in(out, data, jobs=2, report=lambda progress: None, **options) -> Layout:
    """Runs what is missing of a plan with fake workers."""
    layout, plan = Layout(out), read_plan(data)
    with layout.locked() as lock:
        record_plan(plan, layout, None)
        Schedule(plan, layout, jobs, lock=lock, report=report, command=FAKE_WORKER, **options).run()
    publish(layout)
    return layout


@pytest.fixture
def plan_data():
    return plan_as_data()


@pytest.fixture(scope="session")
def whole_plan():
    """The same, not to be changed."""
    return plan_as_data()


@pytest.fixture
def compared(tmp_path):
    """Compares in a folder of the test's own."""
    return partial(compare_in, tmp_path / "out")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Layout:
    """The plan with a grid, done; not to be changed."""
    return compare_in(tmp_path_factory.mktemp("finished"), plan_as_data() | {"learning_rates": RATES})
