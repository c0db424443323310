"""`tropd generate` from a file of prompts to a file that training reads, killed on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shipped import teacher_path
from tropd.cli.main import main
from tropd.data import load_prompts
from tropd.shipped import locate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}+{2 * n}=", "answer": str(3 * n)}) + "\n" for n in range(24)))
    return path


@pytest.fixture
def words(problems):
    return ["--teacher", teacher_path(), "--data", problems, "--columns", '{"prompt": "question"}', "--use_cpu"]


def run(*words):
    return main(["generate", *map(str, words)])


def test_prompts_are_answered_and_the_file_is_one_that_training_reads(words, tmp_path, capfd):
    out = tmp_path / "made" / "responses.jsonl"
    assert run(*words, "--out", out, "--max_prompts", 6, "--max-new-tokens", 80, "--responses_per_prompt", 2) == 0
    said = capfd.readouterr()
    assert "responses    12 to 6 prompts" in said.out and "tokens/s" in said.out
    assert f"--data {out}" in said.out
    assert "generate: 12/12 responses" in said.err
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["prompt"] for record in records][::2] == [f"{n}+{2 * n}=" for n in range(6)]
    data = load_prompts(str(out))
    assert data.rows(12)[3]["teacher_response"] == records[3]["teacher_response"]
    assert data.rows(12)[3]["answer"] == "3"

    assert run(*words, "--out", out, "--max_prompts", 6, "--max-new-tokens", 80, "--responses_per_prompt", 2) == 0
    again = capfd.readouterr()
    assert "already complete" in again.err and "responses    12 to 6 prompts" in again.out


def test_what_comes_with_the_package_is_named_as_in_training(tmp_path):
    out = tmp_path / "answered.jsonl"
    words = ("--teacher", "shipped:generalist", "--data", "recipe:data/problems.jsonl", "--out", out, "--use_cpu")
    assert run(*words, "--max_prompts", 2, "--max_new_tokens", 4) == 0
    prompts = Path(locate("recipe:data/problems.jsonl")).read_text().splitlines()[:2]
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == [
        json.loads(line)["prompt"] for line in prompts
    ]


def test_killed_at_any_moment_the_same_command_completes_the_same_file(words, tmp_path, capfd):
    options = [*words, "--batch_size", "2", "--max_new_tokens", "30"]
    assert run(*options, "--out", tmp_path / "whole.jsonl") == 0
    killed = tmp_path / "killed.jsonl"
    command = [sys.executable, "-m", "tropd", "generate", *map(str, options), "--out", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    while process.poll() is None and not (killed.exists() and killed.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = killed.read_bytes()
    assert 0 < before.count(b"\n") < 24, "it was killed on the way"
    assert run(*options, "--out", killed) == 0
    assert "of 24 responses are already there" in capfd.readouterr().err
    assert killed.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_teacher_that_says_nothing_is_warned_of(words, tmp_path, capfd):
    silent = tmp_path / "silent"
    model = AutoModelForCausalLM.from_pretrained(teacher_path())
    model.generation_config.eos_token_id = list(range(model.config.vocab_size))
    model.save_pretrained(silent)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (silent / name).write_bytes((teacher_path() / name).read_bytes())
    out = tmp_path / "responses.jsonl"
    assert run(*words, "--teacher", silent, "--out", out, "--max_prompts", 3, "--max_new_tokens", 8) == 0
    said = capfd.readouterr().err
    assert "3 of 3 responses are empty" in said and "under FSDP, where it cannot" in said
    assert load_prompts(str(out)).rows(1)[0].get("teacher_response") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--columns", "question"], "columns is 'question'.*--columns '"),
        (["--columns", '{"prompt": 1}'], "columns.prompt is 1"),
        (["--columns.prompt"], "columns.prompt is "),
        (["--columns.prompt", "question", "answer"], "columns.prompt is "),
        (["--method", "tropd"], "--method is not an option of `tropd generate`"),
        (["--limit", "3"], "--limit is not an option"),
        (["stray"], "stray is not an option"),
        (["--chat_template_kwargs", "shout"], "chat_template_kwargs is 'shout'"),
        (["--chat_template_kwargs", '{"tokenize": false}'], "chat_template_kwargs sets tokenize"),
        (["--max_prompts", "0"], "max_prompts is 0"),
        (
            ["--teacher", "org/teacher"],
            "teacher is 'org/teacher', which is not a model folder here and cannot be loaded",
        ),
        (["--temperature", "0"], "temperature is 0"),
        (["--teacher", "./nowhere"], "teacher is './nowhere'"),
        (["--max_new_tokens", "600"], "context has 512 tokens"),
        (["--columns", '{"prompt": "answers"}'], "answers"),
    ],
)
def test_mistakes_are_sentences_before_the_teacher_is_loaded(options, said, words, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    assert run(*words, "--out", tmp_path / "responses.jsonl", *options) == 2
    assert re.search(said, flat(capfd.readouterr().err))
    assert not list(tmp_path.glob("responses*"))


def flat(text):
    """What a screen shows, line breaks undone."""
    return " ".join(text.split())


def test_a_teacher_that_lacks_a_tensor_writes_nothing(words, tmp_path, capfd):
    teacher = shutil.copytree(teacher_path(), tmp_path / "teacher")
    tensors = load_file(teacher / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, teacher / "model.safetensors", {"format": "pt"})
    assert run(*words, "--teacher", teacher, "--max_new_tokens", 8, "--out", tmp_path / "responses.jsonl") == 2
    assert "whose weights lack model.norm.weight:" in flat(capfd.readouterr().err)
    assert not list(tmp_path.glob("responses*"))


def test_columns_are_named_as_in_training(problems, tmp_path, capfd):
    out, teacher = tmp_path / "responses.jsonl", ["--teacher", teacher_path(), "--use_cpu", "--max_new_tokens", 4]
    fields = ["--columns.prompt", "question", "--max_prompts", 2, "--chat_template_kwargs", '{"shout": true}']
    assert run(*teacher, "--data", problems, *fields, "--out", out) == 0
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == ["0+0=", "1+2="]
    assert "chat_template_kwargs has no effect" in flat(capfd.readouterr().err)


def test_arguments_of_the_chat_template_reach_it(problems, tmp_path):
    teacher, out = shutil.copytree(teacher_path(), tmp_path / "teacher"), tmp_path / "responses.jsonl"
    (teacher / "chat_template.jinja").write_text("{{ messages[0].content }}{% if more %}1+{% endif %}")
    words = ["--teacher", teacher, "--data", problems, "--columns.prompt=question", "--chat", "--use_cpu"]
    words += ["--max_prompts", 1, "--max_new_tokens", 2, "--out", out]
    assert run(*words) == 0
    assert run(*words, "--chat_template_kwargs", '{"more": true}') == 2, "another prompt, so another file"


def test_the_stories_model_tells_stories(stories260k, tmp_path, capfd):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "responses.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Once upon a time", "One day")))
    assert run("--teacher", stories260k, "--data", prompts, "--out", out, "--max_new_tokens", "100", "--use_cpu") == 0
    texts = [json.loads(line)["teacher_response_text"] for line in out.read_text().splitlines()]
    assert len(set(" ".join(texts).split()) & {"a", "and", "her", "to", "the", "was", "with"}) > 2


# ---------------------------------------------------------------------- episodes


@pytest.fixture
def orders_file(tmp_path):
    from tropd.proving_ground.storeroom import orders

    path = tmp_path / "orders.jsonl"
    path.write_text("".join(json.dumps(order.row()) + "\n" for order in orders("train", 6, seed=2, levels=(1, 2))))
    return path


def store_words(orders_file, name="teacher"):
    from tropd.proving_ground.storeroom import model_path

    environment = "tropd.proving_ground.storeroom.Storeroom"
    words = ["--teacher", model_path(name), "--data", orders_file, "--environment", environment, "--use_cpu"]
    return [*words, "--max_new_tokens", 160, "--batch_size", 4]


def test_episodes_are_written_as_messages_with_their_reward_and_guide_a_run(orders_file, tmp_path, capfd):
    from tropd.proving_ground.storeroom import model_path

    out = tmp_path / "episodes.jsonl"
    assert run(*store_words(orders_file), "--out", out) == 0
    said = capfd.readouterr().out
    assert "success      " in said and "of the episodes have the reward 1" in said and "messages" in said
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(record["teacher_reward"] for record in records) >= 4
    for record in records:
        roles = [message["role"] for message in record["teacher_response"]]
        assert roles[::2] == ["assistant"] * len(roles[::2]) and set(roles[1::2]) == {"tool"}
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert run(*store_words(orders_file), "--out", out) == 0 and out.read_bytes() == whole, "it goes on where it was"

    words = ["--student", model_path("student"), "--teacher", model_path("teacher"), "--data", out]
    words += ["--environment", "tropd.proving_ground.storeroom.Storeroom", "--output_dir", tmp_path / "run"]
    words += [
        "--guidance_length",
        "share",
        "--max_steps",
        1,
        "--per_device_train_batch_size",
        8,
        "--preflight_prompts",
        0,
    ]
    words += ["--max_completion_length", 160, "--save_strategy", "no", "--logging_steps", 1]
    assert main(["train", *map(str, words)]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert log[0]["guidance/turns"] >= 1 and log[0]["guidance/stale_share"] == 0 and log[0]["agent/turns"] > 2


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--environment", "a.B", "c.D"], "write one dotted path, or name=path of each of several"),
        (["--environment", "tropd.nowhere.Store"], "environment has 'tropd.nowhere.Store', but"),
        (["--engine", "vllm"], "engine is 'vllm', but with tools only Transformers can write episodes"),
    ],
)
def test_environments_that_cannot_be_are_refused(orders_file, tmp_path, capfd, more, what):
    assert run(*store_words(orders_file), *more, "--out", tmp_path / "x.jsonl") == 2
    assert what in capfd.readouterr().err
