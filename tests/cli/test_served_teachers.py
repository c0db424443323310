"""A teacher behind a server from the command line: checked, trained with, planned, asked for responses."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import shipped
from served_fake import FakeServer, of_model


@pytest.fixture(scope="module")
def teacher():
    torch.set_num_threads(1)
    return of_model(AutoModelForCausalLM.from_pretrained(shipped.teacher_path()))


@pytest.fixture
def server(teacher):
    tokenizer = AutoTokenizer.from_pretrained(shipped.teacher_path())

    def write(body):
        return [*tokenizer(f"{body['seed'] % 97}")["input_ids"], tokenizer.eos_token_id]

    with FakeServer(
        teacher,
        vocab_size=tokenizer.vocab_size + 8,
        max_model_len=400,
        most_topk=64,
        root=str(shipped.teacher_path()),
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        writer=write,
    ) as one:
        yield one


def fields(workspace, server, **changes):
    return workspace.fields(teacher=server.url, max_completion_length=24, preflight_prompts=2, **changes)


def test_a_run_is_looked_at_and_trained_as_with_the_model_here(workspace, tropd, server):
    settings = {"method": "tropd", "guidance_schedule": "none", "max_steps": 2, "rollout_log_steps": 0}
    served = tropd("train", *fields(workspace, server, **settings))
    assert served.code == 0, served.err
    here = tropd(
        "train",
        *workspace.fields(max_completion_length=24, preflight_prompts=2, output_dir="here", **settings),
    )
    assert here.code == 0
    logs = [
        [json.loads(line) for line in (workspace.root / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("out", "here")
    ]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 2
    measured = [
        json.loads((workspace.root / name / "preflight.json").read_text())["measurement"] for name in ("out", "here")
    ]
    assert measured[0]["k1"] == pytest.approx(measured[1]["k1"], abs=1e-5)
    assert measured[0]["teacher_entropy"] is None and measured[1]["teacher_entropy"] > 0


def test_a_check_asks_the_server_and_says_what_it_costs_here(workspace, tropd, server):
    server.most_topk = 20
    outcome = tropd("check", *fields(workspace, server, method="opd", output_dir=None))
    assert outcome.code == 0, outcome.err
    for words in ("Both tokenizers give the student's 191 tokens the same ids", "verdict", "memory of one process"):
        assert words in outcome.out
    assert "is behind a server, whose memory and time are not counted" in outcome.out


def test_a_prompt_that_the_servers_context_does_not_hold_is_refused_before_training(workspace, tropd, server):
    server.max_model_len = 30
    outcome = tropd("check", *fields(workspace, server, output_dir=None))
    assert outcome.code == 2 and "prompt has 15 tokens, but only 5 fit" in outcome.err


def test_a_run_goes_on_at_another_address_of_the_same_model(workspace, tropd, server, teacher):
    saved = {"save_strategy": "steps", "save_steps": 1}
    assert tropd("train", *fields(workspace, server, max_steps=1, **saved)).code == 0
    server.stop()
    server._port = 0
    server.start()
    resumed = tropd("train", *fields(workspace, server, max_steps=2, resume_from_checkpoint="latest", **saved))
    assert resumed.code == 0 and "teacher was" not in resumed.err, resumed.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "gkd"}, "method 'gkd' needs whole distributions"),
        ({"teacher": "http://10.1.2.3:8000/v1"}, "another machine over http"),
        ({"student": "http://127.0.0.1:8000/v1"}, "an address, but this model is loaded in this process"),
        ({"teacher_model_name": "nope"}, "teacher_model_name is 'nope'"),
        ({"teacher_patience": -1}, "teacher_patience is -1"),
    ],
)
def test_what_cannot_be_is_a_sentence(workspace, tropd, server, changes, words):
    outcome = tropd("train", *workspace.fields(**{"teacher": server.url} | changes))
    assert outcome.code == 2 and words in outcome.err, outcome.err
    assert "Traceback" not in outcome.err


def test_nobody_there_is_a_sentence(workspace, tropd, server, monkeypatch):
    monkeypatch.setattr("tropd.teacher.served.connect.START_PATIENCE", 0.2)
    server.stop()
    outcome = tropd("train", *fields(workspace, server))
    server.start()
    assert outcome.code == 2 and "does not answer" in outcome.err and "--max-logprobs 64" in outcome.err


def test_it_is_asked_for_responses_and_the_file_goes_on(workspace, tropd, server):
    words = ["--teacher", server.url, "--data", "prompts.jsonl", "--max_new_tokens", "12", "--batch_size", "4"]
    whole = tropd("generate", *words, "--out", "whole.jsonl")
    assert whole.code == 0, whole.err
    assert "teacher at http://127.0.0.1" in whole.err and "8 to 8 prompts" in whole.out
    lines = (workspace.root / "whole.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert all(record["teacher_response_ended"] and record["teacher_response_text"] for record in records)
    assert len({record["teacher_response_text"] for record in records}) > 4

    assert tropd("generate", *words, "--out", "part.jsonl").code == 0
    (workspace.root / "part.jsonl").write_text("".join(f"{line}\n" for line in lines[:4]))
    assert tropd("generate", *words, "--out", "part.jsonl").code == 0
    assert (workspace.root / "part.jsonl").read_text().splitlines() == lines
    refused = tropd("generate", *words, "--out", "other.jsonl", "--dtype", "bfloat16")
    assert refused.code == 2 and "behind a server, which sets its own" in refused.err


def test_a_plan_counts_nothing_of_it(workspace, tropd, server):
    server.stop()
    outcome = tropd("plan", "--student", "student", "--teacher", server.url, "--gpus", "1")
    server.start()
    assert outcome.code == 0, outcome.err
    assert f"teacher  {server.url}, behind a server" in outcome.out
