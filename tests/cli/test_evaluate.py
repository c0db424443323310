"""`tropd evaluate` from a folder of benchmarks to scores, killed on the way, graded again and compared."""

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
from huggingface_hub import ModelCard

from shipped import student_path, teacher_path
from tropd.cli.main import main
from tropd.evaluation import sandbox

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path):
    """Files of the form of AIME's, and of a user's own; the shipped model answers sums, and puts nothing in a box."""
    (tmp_path / "aime24").mkdir()
    rows = [{"id": n, "problem": f"{10 + n}+{20 + n}=", "answer": f"0{30 + 2 * n}"} for n in range(6)]
    (tmp_path / "aime24/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*words):
    return main(["evaluate", *map(str, words)])


def asked(data, out, *words):
    options = ("--benchmarks", "aime24", "--data", data, "--samples", 2, "--max_new_tokens", 30, "--temperature", 1)
    return [teacher_path(), *options, "--use_cpu", "--out", out, *words]


def responses(out):
    return [json.loads(line) for line in (out / "responses/aime24.jsonl").read_text().splitlines()]


def answer_with(out, texts):
    """Put texts in the place of what the model said."""
    path = out / "responses/aime24.jsonl"
    records = [record | {"text": text} for record, text in zip(responses(out), texts, strict=True)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_model_is_asked_graded_and_scored(data, tmp_path, capfd):
    out = tmp_path / "eval"
    assert run(*asked(data, out)) == 0
    said = capfd.readouterr()
    assert "these files differ from those we tried" in said.err
    assert "| AIME 2024 | 6 × 2 | 0.0 |" in said.out
    described = json.loads((out / "evaluation.json").read_text())["benchmarks"]["aime24"]
    assert described["temperature"] == 1.0 and described["samples"] == 2 and described["chat"] is False
    assert described["model"]["weights"]["model.safetensors"] > 0 and described["versions"]["torch"]
    assert list(described["files"]) == ["aime24/test.jsonl"] and described["first_prompt"].startswith("10+20=")
    verdicts = [json.loads(line) for line in (out / "verdicts/aime24.jsonl").read_text().splitlines()]
    assert {verdict["outcome"] for verdict in verdicts} == {"no_answer"}
    assert json.loads((out / "scores.json").read_text())["aime24"]["no_answer"] == 1.0
    assert (out / "tables.md").read_text() in said.out

    assert run(*asked(data, out)) == 0
    again = capfd.readouterr()
    assert "all responses are already there" in again.err and "grade aime24" not in again.err


def test_scores_go_into_the_model_card(data, tmp_path, capfd):
    model = shutil.copytree(teacher_path(), tmp_path / "run")
    words = asked(data, tmp_path / "eval", "--card")[1:]
    (model / "README.md").unlink(missing_ok=True)
    assert run(model, *words) == 2
    assert "card is set, but" in capfd.readouterr().err and not (tmp_path / "eval").exists()
    (model / "README.md").write_text("---\ntags:\n- tropd\n---\n# A student\n\nIts own words.\n")
    for _ in range(2):
        assert run(model, *words) == 0
    card = (model / "README.md").read_text()
    assert card.count("## Evaluation") == 1 and "| AIME 2024 | 6 × 2 | 0.0 | 0.0 | 0.0 |" in card
    assert "# A student\n\nIts own words.\n" in card
    read = ModelCard(card).data
    assert read.tags == ["tropd"] and [one.metric_value for one in read.eval_results] == [0.0]
    assert run("--regrade", tmp_path / "eval", "--data", data, "--card") == 2
    assert "card and regrade are both set" in capfd.readouterr().err


def test_a_file_of_ones_own_needs_no_folder_of_benchmarks(tmp_path, monkeypatch, capfd):
    (tmp_path / "own.jsonl").write_text('{"problem": "10+20=", "answer": "30"}\n')
    (tmp_path / "own_grader.py").write_text(
        "def grade(completions, **row):\n    return [float(row['answer'] == ['30'])]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("shipped:student", "--benchmarks", "own.jsonl@own_grader:grade", "--max_new_tokens", 4, "--use_cpu")
    assert run(*words, "--out", "eval") == 0
    assert json.loads(Path("eval/scores.json").read_text())["own"]["accuracy"] == 1.0
    assert run("--regrade", "eval") == 0
    assert run(*words, "--benchmarks", "own.jsonl,aime24", "--out", "both") == 2
    assert "data is not set" in flat(capfd)


@pytest.mark.parametrize("reshaping", [("--top_p", 1), ("--top_p", 0.8, "--top_k", 20, "--min_p", 0.01)])
def test_a_sample_is_the_same_in_any_batch_and_beside_any_other(data, tmp_path, reshaping):
    assert run(*asked(data, tmp_path / "a", "--batch_size", 12, *reshaping)) == 0
    assert run(*asked(data, tmp_path / "b", "--batch_size", 5, *reshaping)) == 0
    assert responses(tmp_path / "a") == responses(tmp_path / "b")
    assert run(*asked(data, tmp_path / "c", "--samples", 1, *reshaping)) == 0
    assert responses(tmp_path / "c") == responses(tmp_path / "a")[::2]
    first = [record["token_ids"] for record in responses(tmp_path / "a")]
    assert run(*asked(data, tmp_path / "d", "--seed", 7, *reshaping)) == 0
    assert [record["token_ids"] for record in responses(tmp_path / "d")] != first


def test_the_likeliest_tokens_are_the_same_in_every_sample(data, tmp_path):
    assert run(*asked(data, tmp_path / "greedy", "--temperature", 0)) == 0
    records = responses(tmp_path / "greedy")
    assert [record["token_ids"] for record in records[::2]] == [record["token_ids"] for record in records[1::2]]


def test_killed_at_any_moment_the_same_command_completes_the_same_files(data, tmp_path, capfd):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--batch_size", 2, "--samples", 4]
    assert run(*asked(data, whole, *options)) == 0
    command = [sys.executable, "-m", "tropd", "evaluate", *map(str, asked(data, killed, *options))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    path = killed / "responses/aime24.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < path.read_bytes().count(b"\n") < 24, "it was killed on the way"
    with path.open("ab") as stream:
        stream.write(b'{"problem": "0", "sam')  # a line that was cut
    assert run(*asked(data, killed, *options)) == 0
    assert "of 24 responses are already there" in capfd.readouterr().err
    for name in ("responses/aime24.jsonl", "verdicts/aime24.jsonl", "scores.json", "tables.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_graded_again_and_compared(data, tmp_path, capfd):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert run(*asked(data, ours)) == 0 and run(*asked(data, theirs)) == 0
    golds = [str(30 + 2 * (n // 2)) for n in range(12)]
    answer_with(ours, [rf"so \boxed{{{gold}}}" for gold in golds])
    answer_with(theirs, [rf"\boxed{{{gold}}}" if n < 2 else f"I say {gold}" for n, gold in enumerate(golds)])
    assert run("--regrade", ours, "--data", data) == 0 and run("--regrade", theirs, "--data", data) == 0
    assert json.loads((ours / "scores.json").read_text())["aime24"]["accuracy"] == 1.0
    assert json.loads((theirs / "scores.json").read_text())["aime24"]["accuracy"] == pytest.approx(1 / 6)
    capfd.readouterr()
    assert run("--compare", ours, "--reference", theirs) == 0
    table = capfd.readouterr().out
    assert re.search(r"\| AIME 2024 \| \S*theirs \| 16.7 \| reference \|", table)
    assert re.search(r"\| AIME 2024 \| \S*ours \| 100.0 \| \+83.3 \[\+50.0, \+100.0\] \|", table)
    assert run("--compare", f"{ours},{theirs}", "--reference", f"{theirs},{ours}") == 0
    assert "+0.0 [-" in capfd.readouterr().out


def test_the_page_shows_what_was_said_and_problems_that_were_trained_on_are_marked(data, tmp_path, capfd):
    out, train = tmp_path / "eval", tmp_path / "train.jsonl"
    assert run(*asked(data, out)) == 0
    answer_with(out, [r"<b>\boxed{30}</b>", *["so 30"] * 11])
    train.write_text('{"prompt": "10 + 20 ="}\n{"prompt": "1+1="}\n')
    assert run("--regrade", out, "--data", data, "--trained_on", train) == 0
    assert "aime24: 1 of 6 problems are in the training data (2 rows)" in flat(capfd)
    scores = json.loads((out / "scores.json").read_text())["aime24"]
    assert (scores["seen_problems"], scores["accuracy_seen"], scores["accuracy_unseen"]) == (1, 0.5, 0.0)
    assert scores["last_number"] == pytest.approx(1 / 6) and scores["unboxed"] == pytest.approx(11 / 12)
    page = (out / "evaluation.html").read_text()
    assert "&lt;b&gt;\\boxed{30}&lt;/b&gt;" in page and "<b>" not in page and "seen in training 2" in page
    assert "10+20=" in page and "gold 030" in page
    assert run("--regrade", out, "--data", data) == 0
    assert json.loads((out / "scores.json").read_text())["aime24"]["seen_problems"] == 1, "what was found stays"


def test_what_was_begun_with_something_else_is_not_gone_on_with(data, tmp_path, capfd):
    out = tmp_path / "eval"
    assert run(*asked(data, out)) == 0
    assert run(*asked(data, out, "--seed", 1)) == 2
    assert "was started with different settings or data: seed was 42 and is 1" in flat(capfd)
    assert run(student_path(), *asked(data, out)[1:]) == 2
    assert "model was" in flat(capfd)
    path = data / "aime24/test.jsonl"
    path.write_text(path.read_text().replace("10+20", "10+21"))
    assert run(*asked(data, out)) == 2
    assert "files was" in flat(capfd)
    assert run("--regrade", out, "--data", data) == 2
    assert "differs from the problems of" in flat(capfd)
    (out / "responses/aime24.settings.json").unlink()
    assert run(*asked(data, out)) == 2
    assert "which records its settings" in flat(capfd)


def flat(capfd) -> str:
    return " ".join(capfd.readouterr().err.split())


def test_options_from_a_file_and_flags_above_them(data, tmp_path, capfd):
    config = tmp_path / "evaluate.yaml"
    lines = [f"model: {teacher_path()}", "benchmarks: [aime24]", f"data: {data}", "samples: 3", "max_new_tokens: 10"]
    config.write_text("\n".join([*lines, "temperature: 1", "use_cpu: true", "system_prompt: null", "trained_on: null"]))
    assert run("--config", config, "--out", tmp_path / "eval", "--samples", 1) == 0
    described = json.loads((tmp_path / "eval/evaluation.json").read_text())["benchmarks"]["aime24"]
    assert described["samples"] == 1 and described["max_new_tokens"] == 10 and described["system_prompt"] is None
    for line, sentence in (
        ("sample: 3", "'sample', which is not an option of"),
        ("samples: many", "samples is 'many'"),
    ):
        config.write_text(line)
        assert run("--config", config) == 2
        assert sentence in flat(capfd)


def test_the_list_says_what_is_found_and_what_is_missing(data, capfd):
    assert run("--list", "--data", data) == 0
    listed = capfd.readouterr().out
    assert "found, 6 problems; differs from the copy we tried" in listed
    assert "not usable: GPQA Diamond needs" in listed and "Get it from Idavidrein/gpqa" in listed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "model is not set"),
        (("m", "--benchmarks", "aime24"), "data is not set; for instance: tropd evaluate MODEL"),
        (("--list",), "data is not set"),
        (("--compare", "a"), "reference is not set"),
        (("--compare", "a", "--reference", "b"), "has no verdicts/, so it is not a finished evaluation"),
        (("--regrade", "nowhere", "--data", "."), "which has no evaluation.json"),
        (("--config", "nowhere.yaml"), "there is no such file"),
        (("./m", "--benchmarks", "aime24", "--data", ".", "--out", "o"), "model is './m'"),
    ],
)
def test_a_command_that_lacks_something_is_refused_in_a_sentence(capfd, words, sentence):
    assert run(*words) == 2
    assert sentence in flat(capfd)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--benchmarks", "aime42"), "'aime42', which is not a benchmark"),
        (("--benchmarks", "amc23"), "which is missing. Get it from QwenLM"),
        (("--temperature", -1), "temperature is -1"),
        (("--top_p", 0), "top_p is 0"),
        (("--max_problems", -1), "max_problems is -1"),
        (("--samples", -1), "samples is -1"),
        (("--batch_size", 0), "batch_size is 0"),
        (("--dtype", "int8"), "dtype is 'int8'; choose one of"),
        (("--chat_template_kwargs", "thinking"), "write a JSON object"),
        (("--system_prompt", "Hi"), "has no chat template, so system_prompt"),
        (("--max_new_tokens", 100_000), "Lower max_new_tokens to"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_written(data, tmp_path, capfd, words, sentence):
    assert run(*asked(data, tmp_path / "eval", *words)) == 2
    assert sentence in flat(capfd)
    assert not (tmp_path / "eval").exists()


def test_a_benchmark_that_needs_the_sandbox_is_refused_where_there_is_none(monkeypatch, data, tmp_path, capfd):
    monkeypatch.setattr(sandbox.client, "why_not_here", lambda: "this machine cannot contain programs.")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "1+1=", "answer": 2}\n')
    assert run(*asked(data, tmp_path / "eval", "--benchmarks", own)) == 2
    assert "this machine cannot contain programs" in flat(capfd)
    assert not (tmp_path / "eval").exists()
