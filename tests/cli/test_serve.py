"""`tropd serve` and runs that ask it, from the command line."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import shipped
from serving import Server
from teacher.test_served import settings
from tropd.teacher.local import LocalTeacher
from tropd.teacher.served.connect import connect


@pytest.fixture(scope="module")
def server():
    torch.set_num_threads(1)
    path = shipped.teacher_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with Server(AutoModelForCausalLM.from_pretrained(path, dtype="auto"), tokenizer=tokenizer, folder=str(path)) as one:
        yield one


def fields(workspace, server, **changes):
    settings = {"method": "tropd", "preflight_prompts": 2, "rollout_log_steps": 0, "max_completion_length": 12}
    return workspace.fields(**settings | {"teacher": server.url} | changes)


def test_a_run_is_checked_looked_at_and_trained_as_with_the_model_here(workspace, tropd, server):
    checked = tropd("check", *fields(workspace, server, output_dir=None))
    assert checked.code == 0, checked.err
    assert "is behind a server, whose memory and time are not counted" in checked.out
    served = tropd("train", *fields(workspace, server))
    here = tropd("train", *fields(workspace, server, teacher="teacher", output_dir="here"))
    assert served.code == here.code == 0, served.err
    assert "no effect" not in served.err

    metrics = [
        [json.loads(line) for line in (workspace.root / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("out", "here")
    ]
    ours, theirs = (
        [{k: entry[k] for k in entry if k in ("loss", "grad_norm", "entropy/teacher")} for entry in log]
        for log in metrics
    )
    assert ours == theirs and any("entropy/teacher" in entry for entry in ours)
    measured = [
        json.loads((workspace.root / name / "preflight.json").read_text())["measurement"] for name in ("out", "here")
    ]
    assert measured[0] == measured[1]


def test_responses_are_the_ones_that_the_model_writes_here(workspace, tropd, server):
    words = ["--data", "prompts.jsonl", "--max_new_tokens", "12", "--batch_size", "4"]
    served = tropd("generate", "--teacher", server.url, *words, "--out", "served.jsonl")
    here = tropd("generate", "--teacher", "teacher", *words, "--out", "here.jsonl")
    assert served.code == here.code == 0, served.err
    files = [(workspace.root / name).read_text() for name in ("served.jsonl", "here.jsonl")]
    assert files[0] == files[1] and files[0].count("teacher_response_text") == 8


def test_the_command_serves_until_it_is_told_to_end(workspace):
    command = [sys.executable, "-m", "tropd", "serve", "--teacher", "teacher", "--port", "0", "--use_cpu"]
    environment = os.environ | {"TROPD_TEACHER_API_KEY": "sk-55"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        said = []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"tropd://127\.0\.0\.1:\d+", line):
                break
        os.environ["TROPD_TEACHER_API_KEY"] = "sk-55"
        try:
            tokenizer = AutoTokenizer.from_pretrained("student")
            teacher = connect(found[0], settings(), student_tokenizer=tokenizer).teacher
        finally:
            del os.environ["TROPD_TEACHER_API_KEY"]
        text = [[5, 6]], [[7, 8, 9]], [[True] * 3]
        scores = teacher.score(*text, pad_id=0)
        server.send_signal(signal.SIGTERM)
        said.append(server.communicate(timeout=60)[1])
    local = LocalTeacher(AutoModelForCausalLM.from_pretrained("teacher", dtype="auto"))
    assert torch.equal(scores.logp, local.score(*text, pad_id=0).logp)
    assert teacher.name == str(workspace.root / "teacher")
    assert server.returncode == 0 and "ended." in said[-1] and "with a key" in "".join(said)
    assert "Traceback" not in "".join(said) and "sk-55" not in "".join(said)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", "0.0.0.0"], "allows requests from other machines, but there is no key"),
        (["--host", "203.0.113.7", "--api_key_env", "NOT_SET_HERE"], "api_key_env is 'NOT_SET_HERE'"),
        (["--host", "no.such.host.invalid"], "there is no key"),
        (["--port", "99999"], "port 99999 of 127.0.0.1 is not available"),
        (["--max_tokens", "0"], "max_tokens is 0"),
        (["--teacher", "nowhere"], "nowhere"),
        (["--teacher", "shipped:nothing"], "teacher is 'shipped:nothing', which is not in this installation"),
        (["--threads", "3"], "--threads is not an option"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(workspace, tropd, words, sentence):
    outcome = tropd("serve", "--teacher", "teacher", *words)
    assert outcome.code == 2 and sentence in outcome.err and "Traceback" not in outcome.err, outcome.err


def test_a_port_that_is_taken_and_a_package_that_is_missing_are_sentences(workspace, tropd, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        outcome = tropd("serve", "--teacher", "teacher", "--port", str(taken.getsockname()[1]))
    assert outcome.code == 2 and "Choose another: --port N" in outcome.err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    outcome = tropd("serve", "--teacher", "teacher")
    assert outcome.code == 2 and 'pip install "tropd[serve]"' in outcome.err
