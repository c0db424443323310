"""The storeroom: its judge, its expert, its splits, and the shipped models that play in it."""

import doctest
import itertools
import json
import random

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.proving_ground.expert import expert
from tropd.evaluation.episodes import Episode, play
from tropd.proving_ground import storeroom
from tropd.proving_ground.storeroom import MODELS, Storeroom, draw, is_right, model_path, orders


def test_the_example_runs():
    assert doctest.testmod(storeroom).failed == 0


def test_the_judge_agrees_with_brute_force():
    """Over all ways to take from two boxes, right is what leaves the store with as many as can be had."""
    for need, first, second in itertools.product((2, 5, 9), (0, 3), (0, 4)):
        for one, two in itertools.product(range(first + 1), range(second + 1)):
            store = Storeroom()
            store.reset(need=need, boxes=json.dumps({"b": first, "c": second}))
            store.move("b", one)
            store.move("c", two)
            best = max(a + b for a in range(first + 1) for b in range(second + 1) if a + b <= need)
            assert store.get_reward() == float(one + two == best)


def test_calls_that_cannot_be_are_answered_and_change_nothing():
    store = Storeroom()
    store.reset(need=3, boxes='{"b": 4}')
    assert [store.look("g"), store.move("g", 1), store.move("b", 5), store.move("b", -1)] == [
        "no such box",
        "no such box",
        "error only 4",
        "error only 4",
    ]
    assert store.look("b") == "4" and store.errors == 4 and store.calls == 5 and store.get_reward() == 0


@pytest.mark.parametrize("slip", [0.0, 0.5])
def test_the_expert_is_always_right(slip):
    rng = random.Random(1)
    for level in (1, 2, 3, 4, 5):
        for _ in range(30):
            order = draw(rng, level)
            messages, store = expert(order, rng, slip), Storeroom()
            store.reset(**order.row())
            for message in messages:
                for call in message.get("tool_calls", ()):
                    getattr(store, call["function"]["name"])(**call["function"]["arguments"])
            assert is_right(store, messages[-1]["content"])
            assert store.errors == 0 or slip
            assert len(order.boxes) == level + 1 and not is_right(store, "perhaps")


def test_the_expert_goes_on_behind_whatever_another_has_done():
    """Random calls, of which none brings more than was asked for; what has been told of boxes is remembered."""
    rng = random.Random(2)
    for _ in range(200):
        order, store, behind = draw(rng, rng.choice((1, 3))), Storeroom(), []
        store.reset(**order.row())
        for _ in range(rng.randint(0, 6)):
            box, left = rng.choice([*order.boxes, "z"]), order.need - store.brought
            name, arguments = "look", {"box": box}
            if rng.random() < 0.5:
                name, arguments = "move", {"box": box, "count": str(rng.randint(0, min(left, 9)))}
            call = {"type": "function", "function": {"name": name, "arguments": arguments}}
            behind.append({"role": "assistant", "content": "need 30 .", "tool_calls": [call]})
            behind.append({"role": "tool", "name": name, "content": getattr(store, name)(**arguments)})
        before, messages = store.calls, expert(order, rng, 0.2, behind)
        for message in messages:
            for call in message.get("tool_calls", ()):
                getattr(store, call["function"]["name"])(**call["function"]["arguments"])
        assert is_right(store, messages[-1]["content"])
        assert store.calls - before <= 4 * len(order.boxes)


def test_splits_share_no_problem_and_a_prompt_tells_no_contents():
    found = {split: orders(split, 60, seed=3) for split in ("train", "validation", "test")}
    keys = [order.key for part in found.values() for order in part]
    assert len(set(keys)) == 180 and found["test"] == orders("test", 60, seed=3)
    for order in found["train"]:
        assert order.prompt == f"bring {order.need} to a . boxes {' '.join(order.boxes)} ."
        assert set(order.row()) == {"prompt", "need", "boxes", "level"}


def played(name: str, count: int, **settings) -> list[Episode]:
    model, tokenizer = (made.from_pretrained(model_path(name)) for made in (AutoModelForCausalLM, AutoTokenizer))
    rows = [order.row() for order in orders("test", count, seed=9)]
    defaults = {"environment": Storeroom, "eos_ids": [2], "max_length": 340, "max_turns": 20, "turn_tokens": 18}
    return play(model.eval(), tokenizer, rows, **defaults | settings)


def success(episodes: list[Episode]) -> float:
    return sum(is_right(e.environment, e.messages[-1].get("content") or "") for e in episodes) / len(episodes)


def test_the_shipped_models_play_as_well_as_the_page_says():
    """On 24 problems; docs/agents.md has 150."""
    shares = {name: success(played(name, 24, temperature=0.0)) for name in MODELS}
    student = shares.pop("student")
    assert min(shares.values()) >= 0.83 and 0.2 <= student <= 0.7


def test_an_episode_is_the_same_whatever_others_are_played_with_it():
    few, more = played("student", 3), played("student", 6)
    assert [e.response for e in few] == [e.response for e in more[:3]]
    assert all(len(e.response) == len(e.external) and e.turns >= 1 and e.reward in (0.0, 1.0) for e in more)
    assert any(e.calls > 1 for e in more)


def test_a_model_that_is_not_there_says_so(monkeypatch):
    with pytest.raises(ValueError, match=r"the storeroom has no such model\. Choose teacher or student or robust"):
        model_path("generalist")
    monkeypatch.setattr("tropd.shipped.MODELS", model_path("teacher") / "nowhere")
    with pytest.raises(
        ValueError, match=r"'shipped:storeroom-teacher', which is not in this .* only in tropd's repository"
    ):
        model_path("teacher")
