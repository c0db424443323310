"""BFCL's file system: the reference succeeds and idleness does not, and a run plays it through the tool loop."""

import json
import subprocess
import sys

import pytest

from training import agents
from training.agents import build, logged, qwen
from tropd.data import load_prompts
from tropd.run.tools import find_tools

pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed (pip install --no-deps bfcl-eval)")

from tropd.environments import bfcl

ROWS = {split: list(bfcl.rows(split)) for split in bfcl.SPLITS}


def begun(row: dict) -> bfcl.FileSystem:
    environment = bfcl.FileSystem()
    assert environment.reset(**row) is None
    return environment


def reference(row: dict) -> list[bfcl.Call]:
    return bfcl.tasks()[row["task"]]["reference"][row["turn"]]


def test_the_reference_succeeds_in_every_turn_and_nothing_and_another_call_do_not():
    rewards = {"reference": [], "nothing": [], "pwd": []}
    for row in ROWS["train"] + ROWS["test"]:
        played, idle, other = begun(row), begun(row), begun(row)
        for name, arguments in reference(row):
            getattr(played, name)(**arguments)
        other.pwd()
        for name, environment in zip(rewards, (played, idle, other), strict=True):
            rewards[name].append(environment.get_reward())
    assert len(rewards["reference"]) == 44
    assert rewards == {"reference": [1.0] * 44, "nothing": [0.0] * 44, "pwd": [0.0] * 44}


def test_a_file_too_many_is_no_success():
    row = ROWS["train"][0]
    environment = begun(row)
    for name, arguments in reference(row):
        getattr(environment, name)(**arguments)
    environment.touch(file_name="one_more.txt")
    assert environment.get_reward() == 0.0
    environment.reset(**row)
    assert environment.calls == 0 and "one_more.txt" not in environment.ls()


def test_the_turns_of_a_task_are_in_one_split():
    of = {split: {row["task"] for row in rows} for split, rows in ROWS.items()}
    assert not of["train"] & of["test"] and len(of["train"] | of["test"]) == len(bfcl.tasks()) == 13
    with pytest.raises(ValueError, match="split is 'dev'; the tasks are divided into train and test"):
        next(bfcl.rows("dev"))


def test_a_tool_that_a_task_excludes_is_not_available():
    row = next(row for row in ROWS["test"] if bfcl.tasks()[row["task"]].get("excluded_function") == ["cp"])
    environment = begun(row)
    assert environment.cp(source="a", destination="b") == '{"error": "cp is not available"}'


def test_every_tool_has_a_schema_and_an_unknown_task_is_refused():
    (schemas,) = find_tools([], "tropd.environments.bfcl.FileSystem").schemas.values()
    assert [schema["function"]["name"] for schema in schemas] == list(bfcl.TOOLS)
    assert all(schema["function"]["description"] for schema in schemas)
    with pytest.raises(ValueError, match="task is 'x', which is not one of BFCL's"):
        bfcl.FileSystem().reset(task="x", turn=0)


@pytest.mark.parametrize("text", ["open('x')", "ls(a=print())", "ls", "ls().sort()"])
def test_a_reference_is_read_and_never_run(text):
    with pytest.raises(ValueError, match=r"is not a call of|malformed"):
        bfcl.read_call(text)


def test_the_file_of_rows_loads_as_it_was_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "tropd.environments.bfcl", "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: 28 rows of 9 tasks\n"
    rows = load_prompts(path).dataset.to_list()
    assert rows == json.loads(json.dumps(ROWS["train"])) == [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_plays_it_through_the_tool_loop(tmp_path):
    """Of two tasks the student plays the reference of one, and answers the other without a call."""
    path = tmp_path / "rows.jsonl"
    chosen = [ROWS["test"][0], next(row for row in ROWS["train"] if row["turn"] == 0)]
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    rows = load_prompts(path).dataset.to_list()
    calls = [
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call><|im_end|>"
        for name, arguments in reference(chosen[0])
    ]

    def play(context: list[int]) -> str:
        read = agents.text(context).split("<|im_start|>user\n" + chosen[0]["prompt"][0]["content"])
        told = read[-1].count("<tool_response>")
        return calls[told] if len(read) > 1 and told < len(calls) else "Done.<|im_end|>"

    models = {name: qwen(seed) for name, seed in (("student", 1), ("teacher", 2))}
    for model in models.values():
        model.config.max_position_embeddings = 32768  # one token a byte, and the schemas of 18 tools
    trainer = build(
        tmp_path, play, environment_factory=bfcl.FileSystem, rows=rows * 2, num_generations=2, logging_steps=1, **models
    )
    trainer.train()
    assert logged(trainer)["reward"] == 0.5
    assert logged(trainer)["tools/failure_frequency"] == 0
