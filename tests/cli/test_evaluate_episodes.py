"""`tropd evaluate --environment`: episodes of the storeroom's student, their scores, and going on with them."""

import doctest
import hashlib
import json
import re

import pytest

from tropd.cli.main import main
from tropd.evaluation import episode_scores
from tropd.evaluation.responses import Sampling, describe
from tropd.evaluation.results import versions
from tropd.proving_ground.storeroom import Storeroom, model_path, orders


def test_the_example_runs():
    assert doctest.testmod(episode_scores).failed == 0


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def evaluate(tmp_path):
    """The command on three orders, two episodes of each; options are added."""
    file = tmp_path / "orders.jsonl"
    found = orders("test", 3, seed=2, levels=(1, 2))
    file.write_text("".join(json.dumps(order.row()) + "\n" for order in found))

    def run(*words, environment="tropd.proving_ground.storeroom.Storeroom"):
        options = ["--environment", environment, "--data", file, "--out", tmp_path / "out", "--samples", 2]
        options += ["--max_new_tokens", 160, "--temperature", 1, "--batch_size", 4, "--use_cpu", *words]
        return main(["evaluate", *map(str, ["shipped:storeroom-teacher", *options])])

    return run


def replayed(record, order):
    """The reward of the recorded calls."""
    store = Storeroom()
    store.reset(**order.row())
    for message in record["messages"]:
        for call in message.get("tool_calls") or []:
            getattr(store, call["function"]["name"])(**call["function"]["arguments"])
    return store.get_reward()


def test_episodes_are_played_scored_and_gone_on_with(evaluate, tmp_path, capfd):
    assert evaluate() == 0
    said, out = capfd.readouterr().out, tmp_path / "out"
    records = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == [0, 0, 1, 1, 2, 2]
    found = orders("test", 3, seed=2, levels=(1, 2))
    assert [record["reward"] for record in records] == [replayed(r, found[r["row"]]) for r in records]
    scores = json.loads((out / "episode_scores.json").read_text())
    share = sum(record["reward"] == 1 for record in records) / 6
    assert scores["success"]["mean"] == pytest.approx(share) and share > 0.5 and scores["problems"] == 3
    assert f"success       {100 * share:.2f}" in said and "failed calls" in said

    whole = (out / "episodes.jsonl").read_bytes()
    (out / "episodes.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    assert evaluate() == 0 and (out / "episodes.jsonl").read_bytes() == whole


def test_the_record_has_what_that_of_benchmarks_has(evaluate, tmp_path, capfd):
    """By the same function: the data's digests, dtype, template and model; other data are not gone on with."""
    template = {"enable_thinking": False}
    words = ["--dtype", "float32", "--chat_template_kwargs", json.dumps(template), "--max_tool_result_tokens", 9]
    assert evaluate(*words) == 0
    record = json.loads((tmp_path / "out" / "episodes.json").read_text())
    data = tmp_path / "orders.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    played = {"environment": "tropd.proving_ground.storeroom.Storeroom", "tools": None, "max_turns": 64}
    played |= {"max_tool_result_tokens": 9}
    files = {"orders.jsonl": hashlib.sha256(data.read_bytes()).hexdigest()}
    sampling = Sampling(
        str(model_path("teacher")),
        temperature=1,
        top_p=1,
        max_new_tokens=160,
        batch_size=4,
        dtype="float32",
        chat_template_kwargs=template,
    )
    assert record == json.loads(json.dumps(describe(sampling, rows, 2, files) | played))
    assert json.loads((tmp_path / "out" / "episode_scores.json").read_text())["versions"] == versions()

    data.write_text(data.read_text().replace('"need": ', '"need": 1'))
    assert evaluate(*words) == 2
    assert "problems_sha256 was" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--max_turns", 0], "max_turns is 0; an episode has at least 1"),
        (["--max_tool_result_tokens", 0], "max_tool_result_tokens is 0; use at least 1"),
        (["--top_p", 0.5], r"top_p is 0\.5, but episodes do not support it"),
        (["--benchmarks", "aime24"], "evaluate one, then the other"),
        (["--environment", "tropd.nothing.Store"], "environment has 'tropd.nothing.Store'"),
    ],
)
def test_what_cannot_be_is_refused(evaluate, words, what, capfd):
    assert evaluate(*words) == 2
    assert re.search(what, " ".join(capfd.readouterr().err.split()))


def test_episodes_of_other_settings_are_not_gone_on_with(evaluate, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "episodes.json").write_text(json.dumps({"model": str(model_path("student"))}))
    (tmp_path / "out" / "episodes.jsonl").write_text("{}\n")
    assert evaluate() == 2
    assert "or choose another --out" in " ".join(capfd.readouterr().err.split())


class Talker(Storeroom):
    """Whose replies are longer than anybody wants."""

    def look(self, box: str) -> str:
        """How many are in a box.

        Args:
            box: its letter.
        """
        return " ".join([super().look(box)] * 40)


def test_replies_are_cut_as_in_training(evaluate, tmp_path):
    """With four tokens of each there is room for more calls than with all; the messages keep them whole."""
    turns, environment = {}, f"{__name__}.Talker"
    for most in (4, 100):
        assert evaluate("--max_tool_result_tokens", most, "--out", tmp_path / str(most), environment=environment) == 0
        records = [json.loads(line) for line in (tmp_path / str(most) / "episodes.jsonl").read_text().splitlines()]
        turns[most] = sum(record["turns"] for record in records)
        said = [message for record in records for message in record["messages"] if message["role"] == "tool"]
        assert any(message["content"].count(" ") == 39 for message in said)
    assert turns[4] > turns[100]
