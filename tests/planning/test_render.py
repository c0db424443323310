"""The plan as people read it."""

import pytest

from shipped import student_path, teacher_path
from tropd.planning import HARDWARE, Rates, model_shape, plan_run, render
from tropd.planning.render import WIDTH


@pytest.fixture
def plan(config):
    args = config(method="tropd", per_device_train_batch_size=8, rescore_rollouts=True)
    return plan_run(args, model_shape(student_path()), model_shape(teacher_path()), prompt_tokens=12.0)


def test_every_stage_is_there_in_lines_that_fit(plan):
    rates = Rates(rollout=100.0, student_scoring=1000.0, teacher_scoring=500.0)
    lines = render(plan, available=10**12, time=plan.time(rates))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= WIDTH
    for piece in (
        "teacher prefixes",
        "rollout",
        "student scoring",
        "teacher scoring",
        "update",
        "It should fit",
        "disk",
    ):
        assert piece in text
    assert "from measured rates" in text


def test_a_guess_says_that_it_is_one(plan):
    assert "a guess from peak numbers" in " ".join(render(plan, time=plan.time_on(HARDWARE["h100"])))


def test_what_does_not_fit_is_said(plan):
    assert "will probably not fit" in "\n".join(render(plan, available=1000))


def test_the_number_of_steps_must_be_known(config):
    shape = model_shape(student_path())
    with pytest.raises(ValueError, match="max_steps is -1"):
        plan_run(config(max_steps=-1), shape, shape, prompt_tokens=8.0)
    assert plan_run(config(max_steps=-1), shape, shape, prompt_tokens=8.0, max_steps=7).max_steps == 7
