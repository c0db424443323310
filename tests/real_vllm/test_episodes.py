"""Episodes by a real vLLM, in an environment and with recorded turns of a teacher; `make test-vllm`."""

import importlib.util
from collections import Counter

import pytest

from real_vllm.test_colocate import run, steps_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
BUDGET = 120


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    found = run(tmp_path_factory.mktemp("vllm") / "episodes", worker="episode_worker.py", max_completion_length=BUDGET)
    assert found["failure"] is None
    return found


def as_written(message: dict) -> list[str]:
    """The words of a recorded turn with a call, as the storeroom's template has them."""
    call = message["tool_calls"][0]["function"]
    arguments = [word for pair in call["arguments"].items() for word in map(str, pair)]
    return [*message["content"].split(), "<call>", call["name"], *arguments, "</call>", "<end>"]


def test_guided_turns_are_the_recorded_ones(seen):
    """Half of each episode's turns, from the first on; whatever follows is the student's alone."""
    for step in seen["steps"]:
        assert len(step["rollouts"]) == 8
        for rollout in step["rollouts"]:
            episode = next(episode for prompt, episode in seen["recorded"].items() if prompt in rollout["prompt"])
            turns = [message for message in episode if message["role"] == "assistant"]
            taught = len(turns) // 2
            marks = [turn["by_teacher"] for turn in rollout["turns"]]
            assert marks[:taught] == [[True]] * taught and taught > 0
            assert marks[taught:] == [[False]] * (len(marks) - taught) and len(marks) > taught
            assert [turn["text"].split() for turn in rollout["turns"][:taught]] == list(map(as_written, turns[:taught]))
    assert all(step["guidance/stale_share"] == 0 for step in steps_of(seen))


def test_the_students_turns_are_what_vllm_was_asked_for_within_what_the_episode_has_left(seen):
    calls = 0
    for step in seen["steps"]:
        asked = [row for call in seen["asked"][calls : step["calls"]] for row in call]
        calls = step["calls"]
        own = [turn for rollout in step["rollouts"] for turn in rollout["turns"] if turn["by_teacher"] == [False]]
        assert Counter((row["max_tokens"], tuple(row["written"])) for row in asked) == Counter(
            (BUDGET - turn["start"], tuple(turn["ids"])) for turn in own
        )
        assert len({row["seed"] for row in asked}) == len(asked) > 8, "some go on over several turns"


def test_weights_follow_from_step_to_step(seen):
    assert [step["rollout/engine"] for step in steps_of(seen)] == [2.0] * 2
    assert all(step["sampler/logp_gap"] < 1e-3 and step["agent/turns"] > 2 for step in steps_of(seen))
