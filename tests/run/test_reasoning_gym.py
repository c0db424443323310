"""A run whose prompts and rewards are made by the package."""

import pytest

from training import agents
from tropd.data import load_prompts
from tropd.run.tools import reward_function


def test_a_run_is_rewarded_by_the_scorers_of_its_tasks(tmp_path):
    pytest.importorskip("reasoning_gym", reason="tropd[gym] is not installed")
    rows = load_prompts("reasoning_gym:leg_counting?size=2", chat=True).dataset.to_list()
    right = {agents.text(agents.ids(row["prompt"][0]["content"])): row["answer"] for row in rows}

    def play(context: list[int]) -> str:
        """The first problem is answered, the other one not."""
        asked = next(question for question in right if question in agents.text(context))
        return f"<answer>{right[asked] if asked == next(iter(right)) else 'no'}</answer><|im_end|>"

    trainer = agents.build(
        tmp_path, play, tools=None, rows=rows * 2, reward_funcs=reward_function("reasoning_gym"), num_generations=2
    )
    trainer.train()
    rewards = [entry["rewards/reasoning_gym_reward/mean"] for entry in trainer.state.log_history if "loss" in entry]
    assert rewards == [0.5]
