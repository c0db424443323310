"""Verifiable rewards beside the teacher's signal: watched by default, mixed in by a weight."""

import pytest
import torch

from training import tiny
from training.tiny import clone, gradients_of, groups, largest, largest_difference, plain_logp, recorded, replay, run

ROWS = [{"prompt": p, "teacher_response": "xyz+"} for p in tiny.PROMPTS]
REWARDS = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 3.0]


def fixed_reward(completions, **columns):
    return REWARDS


@pytest.fixture
def step(tmp_path, student, teacher):
    def one_step(method="opd", reward=fixed_reward, **settings):
        options = {"trainer_options": {"reward_funcs": reward}} if reward else {}
        return run(tmp_path, student, teacher, method, script=replay(recorded(8)), **options, **settings)

    return one_step


@pytest.mark.parametrize("method", ["opd", "tropd", "gkd"])
def test_rewards_are_watched_and_change_nothing_by_default(step, method):
    settings = {"rows": ROWS} if method == "tropd" else {}
    watched, plain = step(method, **settings), step(method, reward=None, **settings)
    assert largest_difference(watched.gradients, plain.gradients) == 0
    assert watched.logs[0]["rewards/fixed_reward/mean"] == pytest.approx(5 / 8)
    assert watched.logs[0]["reward"] == pytest.approx(5 / 8)
    assert watched.logs[0]["loss/reward"] == 0


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_a_weight_adds_its_share_of_the_reward_policy_gradient_and_no_more(step, student, weight):
    mixed, plain = step(reward_mixing_weight=weight), step()
    model = clone(student).double()
    rewards = torch.tensor(REWARDS, dtype=torch.float64).view(2, 4)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    rows = zip(groups(), recorded(8), advantages, strict=True)
    loss = torch.stack([-advantage * plain_logp(model, p, r).sum() for p, r, advantage in rows]).sum()
    expected = gradients_of(model, weight * loss / sum(map(len, recorded(8))))
    added = {name: mixed.gradients[name] - plain.gradients[name] for name in plain.gradients}
    assert largest(expected) > 0.1
    assert largest_difference(added, expected) < 2e-5 * largest(expected)


def test_the_teachers_prefix_earns_no_reward(step):
    """Every student token carries the advantage and no prefix token does: the logged part says how many there were."""
    done = step("tropd", rows=ROWS, reward_mixing_weight=1.0, guidance_schedule="constant")
    batch = done.trainer._buffered_inputs[0]
    advantage = [r.reward_advantage * r.student_length for r in batch.rollouts]
    assert done.logs[0]["loss/reward"] == pytest.approx(-sum(advantage) / batch.counts.total, rel=1e-4)


def test_reward_functions_get_the_columns_of_the_data_set(step):
    seen = {}

    def reward(prompts, completions, answer, **_):
        seen.update(prompts=prompts, completions=completions, answer=answer)
        return [0.0] * len(prompts)

    step(reward=reward, rows=[{"prompt": p, "answer": str(n)} for n, p in enumerate(tiny.PROMPTS)])
    assert seen["answer"] == ["0"] * 4 + ["1"] * 4
    assert seen["prompts"][0] == "ab=" and len(seen["completions"]) == 8


def test_rewards_of_single_rollouts_are_watched_and_cannot_be_mixed_in(step):
    settings = {"num_generations": 1, "rows": [{"prompt": "ab="}] * 8}
    assert step(**settings).logs[0]["rewards/fixed_reward/mean"] == pytest.approx(5 / 8)
    with pytest.raises(ValueError, match=r"reward_mixing_weight is 1\.0 with num_generations 1"):
        step(reward_mixing_weight=1.0, **settings)
