"""Tools and environments on the command line, from a check to a trained run, with the storeroom's real pair."""

import json

import pytest

from tropd.cli.main import main
from tropd.proving_ground.storeroom import model_path, orders

TOOLS = '''
from tropd.proving_ground.storeroom import Storeroom

STORE = Storeroom()
STORE.reset(need=3, boxes='{"b": 9, "c": 9, "d": 9}')


def look(box: str) -> str:
    """How many are in a box.

    Args:
        box: its letter.
    """
    return STORE.look(box)


def move(box: str, count: int) -> str:
    """Bring some of a box to a.

    Args:
        box: its letter.
        count: how many.
    """
    return STORE.move(box, count)
'''

WAYS = {
    "environment": ["--environment", "tropd.proving_ground.storeroom.Storeroom"],
    "tools": ["--tools", "own_store.look", "own_store.move"],
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The fields of a small run: four orders, two rollouts of each, guided over turns."""
    (tmp_path / "own_store.py").write_text(TOOLS)
    rows = [order.row() for order in orders("train", 4, seed=2, levels=(1, 2))]
    (tmp_path / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    fields = {
        "student": model_path("student"),
        "teacher": model_path("teacher"),
        "data": "orders.jsonl",
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 2,
        "max_completion_length": 120,
        "save_strategy": "no",
        "logging_steps": 1,
        "preflight_prompts": 4,
    }
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("way", WAYS)
def test_a_check_says_what_episodes_are_like(words, tmp_path, capsys, way):
    assert main(["check", *words, *WAYS[way], "--json", "found.json"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in ("turns of a rollout, and cut ones", "calls that can be read", "turn 1 ", "turn 2 "):
        assert name in said
    found = json.loads((tmp_path / "found.json").read_text())["measurement"]["episodes"]
    assert found["mean_turns"] > 2 and found["num_calls"] > 4 and found["parsed_share"] > 0.9
    assert len(found["turns"]) > 2 and all(0 < bucket["trust_fraction"] <= 1 for bucket in found["turns"])


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_guided_over_turns_and_logs_its_episodes(words, tmp_path, capsys, way):
    more = ["--method", "tropd", "--guidance_length", "cap", "--guidance_beta", "0.1", "--rollout_log_steps", "1"]
    assert main(["train", *words, *WAYS[way], *more, "--output_dir", "run"]) == 0, capsys.readouterr().err
    (log,) = [
        entry
        for entry in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        if "loss" in entry
    ]
    assert log["guidance/turns"] > 1 and log["agent/turns"] > 2 and log["tools/call_frequency"] > 1
    assert ("reward" in log) == (way == "environment")
    lines = (tmp_path / "run" / "rollouts" / "step-000001.jsonl").read_text().splitlines()
    authors = [[part["author"] for part in json.loads(line)["episode"]] for line in lines]
    assert authors and all(one[:2] == ["teacher", "tool"] for one in authors)
    assert (tmp_path / "run" / "model.safetensors").is_file()
