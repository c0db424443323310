"""The budget of student-written tokens: how many steps it takes, and where a run ends."""

from types import SimpleNamespace

import pytest

from tropd.comparison.cell.token_budget import Forecast, TokenBudget
from tropd.objective.methods import get_method


def forecast(method="opd", lengths=(9, 19), max_length=64, **changes):
    return Forecast(get_method(method, **changes), lengths, max_length, rows=4)


def test_an_unguided_step_writes_responses_as_long_as_the_teachers_with_their_ends():
    assert forecast().tokens(0, 10) == 4 * (10 + 20) / 2
    assert forecast().steps(600) == 10
    assert forecast(max_length=10).tokens(0, 10) == 4 * 10, "nothing is longer than the budget of a rollout"


def test_a_guided_run_takes_as_many_steps_as_its_tails_need():
    """`share` and linear: at step t of T the student writes L + 1 − ⌊(1 − t/T) · L⌋ tokens of a response of L."""
    guided = forecast("tropd", lengths=(10,), guidance_schedule="linear", guidance_length="share")
    tails = [1 + 10 - min(10 - t, 9) for t in range(10)]
    assert [guided.tokens(t, 10) for t in range(10)] == [4 * tail for tail in tails]
    assert guided.steps(4 * sum(tails)) == 10
    assert guided.steps(4 * sum(tails), done=10, written=4 * sum(tails) - 1) == 11


def run(budget: TokenBudget, written_at, most=10_000):
    """The host's loop: stops at its own plan or when it is told to; the steps taken."""
    state, control = SimpleNamespace(max_steps=0, global_step=0), SimpleNamespace(should_training_stop=False)
    budget.on_train_begin(None, state, control)
    while not control.should_training_stop and state.global_step < most:
        length = written_at(state.global_step, state.max_steps)
        state.global_step += 1
        assert state.global_step < state.max_steps, "the host's own end is never before the budget's"
        budget.on_step_end(None, state, control)
        budget.on_log(None, state, control, logs={"response/length": length})
    return state.global_step


@pytest.mark.parametrize("length", [7.0, 15.0, 40.0])
def test_a_run_ends_at_the_step_nearest_to_its_budget(length):
    budget = TokenBudget(forecast(), 3000)
    steps = run(budget, lambda step, steps: length)
    assert steps == round(3000 / (4 * length)) and not budget.unspent


def test_a_guided_run_ends_its_schedule_where_its_budget_ends():
    """The student writes half of the forecast, so the run is longer; its last prefixes are short all the same."""
    guided = forecast("tropd", lengths=(30,), guidance_length="share")
    budget, fractions = TokenBudget(guided, 6000), []

    def written(step, steps):
        fractions.append(step / steps)
        return guided.tokens(step, steps) / 4 / 2

    assert run(budget, written) > 1.3 * budget.planned
    assert budget.written == pytest.approx(6000, abs=100)
    assert fractions[-1] > 0.97 and max(b - a for a, b in zip(fractions, fractions[1:])) < 0.03  # noqa: B905, RUF007


def test_a_run_that_writes_next_to_nothing_is_stopped_and_says_so():
    budget = TokenBudget(forecast(), 3000)
    assert run(budget, lambda step, steps: 0.1) == budget.most_steps and budget.unspent
