"""`tropd train` on the real shipped pair: the run directory, resuming, adapters, evaluation, rewards, interruption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.conftest import PROMPTS
from tropd import TerminalReport, TrOPDConfig, TrOPDTrainer


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_directory_that_explains_itself(workspace, tropd):
    outcome = tropd("train", *workspace.fields(max_steps=2, preflight_prompts=2, rollout_log_steps=1, method="tropd"))
    assert outcome.code == 0, outcome.err
    out = workspace.root / "out"
    described = json.loads((out / "run.json").read_text())
    assert described["method"]["name"] == "tropd" and described["student"] == "student"
    assert (described["data"], described["tools"], described["environment"]) == ("prompts.jsonl", [], None)
    assert json.loads((out / "preflight.json").read_text())["verdict"]["kind"]
    assert [entry["step"] for entry in metrics(out) if "loss" in entry] == [1, 2]
    assert len(list((out / "rollouts").glob("*.jsonl"))) == 2
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(out).eos_token == "<eos>"
    assert not same(weights(out), weights(workspace.root / "student"))


def test_the_screen_shows_progress_and_a_summary(workspace, tropd):
    outcome = tropd("train", *workspace.fields(max_steps=2))
    assert "train: 2/2 steps  loss" in outcome.err
    assert "done: 2 steps in" in outcome.out and "trust fraction" in outcome.out and "out" in outcome.out
    assert "{'loss'" not in outcome.out + outcome.err, "the libraries' own log is off"
    page = (workspace.root / "out" / "report.html").read_text()
    assert "Token inspector" in page and "out/report.html" in outcome.out and "tropd evaluate" in outcome.out


def test_evaluations_have_a_line_and_a_guided_run_compares_like_with_like(workspace, tropd):
    rows = [{"prompt": prompt, "teacher_response": "1 + 1 = 2, and so on"} for prompt in PROMPTS]
    settings = {"data": workspace.jsonl("answered.jsonl", rows), "eval_data": "prompts.jsonl", "method": "tropd"}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "per_device_eval_batch_size": 8}
    outcome = tropd("train", *workspace.fields(**settings, preflight_prompts=2))
    assert outcome.code == 0, outcome.err
    assert "evaluation after step 1: loss " in outcome.err and "evaluation after step 2: loss " in outcome.err
    assert "preflight" in outcome.out and "evaluation, step 2" in outcome.out
    assert "without a teacher prefix" in outcome.out


def test_python_users_have_the_same_screen(workspace, capsys):
    args = TrOPDConfig(
        "python", method="opd", max_steps=2, per_device_train_batch_size=8, max_completion_length=8, logging_steps=1,
        save_strategy="no", gradient_checkpointing=False, use_cpu=True, bf16=False, report_to="none",
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    TrOPDTrainer("student", "teacher", args=args, train_dataset=rows, callbacks=[TerminalReport()]).train()
    printed = capsys.readouterr()
    assert "train: 2/2 steps  loss" in printed.err and "done: 2 steps in" in printed.out
    assert "Token inspector" in (workspace.root / "python" / "report.html").read_text()


def test_the_command_line_trains_what_python_trains_with_or_without_a_preflight(workspace, tropd):
    for name, prompts in (("looked", 4), ("blind", 0)):
        assert tropd("train", *workspace.fields(max_steps=2, output_dir=name, preflight_prompts=prompts)).code == 0
    args = TrOPDConfig(
        "python",
        method="opd",
        max_steps=2,
        per_device_train_batch_size=8,
        max_completion_length=8,
        save_strategy="no",
        gradient_checkpointing=False,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    rows = [json.loads(line) for line in (workspace.root / "prompts.jsonl").read_text().splitlines()]
    TrOPDTrainer("student", "teacher", args=args, train_dataset=Dataset.from_list(rows)).train()
    trained = [weights(workspace.root / name) for name in ("looked", "blind", "python")]
    assert same(trained[0], trained[1]) and same(trained[0], trained[2])


def test_a_run_goes_on_from_its_last_checkpoint(workspace, tropd):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    assert tropd("train", *workspace.fields(output_dir="whole", **saving)).code == 0
    assert tropd("train", *workspace.fields(**saving)).code == 0
    out = workspace.root / "out"
    for name in ("model.safetensors", "checkpoint-4"):
        subprocess.run(["rm", "-r", out / name], check=True)
    outcome = tropd("train", *workspace.fields(resume_from_checkpoint="latest", **saving))
    assert outcome.code == 0 and "resuming from out/checkpoint-2" in outcome.err
    assert "done: 2 steps" in outcome.out
    assert same(weights(out), weights(workspace.root / "whole"))
    assert [entry["step"] for entry in metrics(out) if "loss" in entry] == [1, 2, 3, 4]


def test_a_run_that_ended_before_its_first_checkpoint_may_be_started_again(workspace, tropd):
    fields = workspace.fields(max_steps=1, rollout_log_steps=1)
    assert tropd("train", *fields).code == 0
    out = workspace.root / "out"
    for path in out.iterdir():
        if path.suffix in (".safetensors", ".bin") or path.name in ("config.json", "generation_config.json"):
            path.unlink()
    for path in out.glob("*tokenizer*"):
        path.unlink()
    (out / "chat_template.jinja").unlink(missing_ok=True)
    before = (out / "metrics.jsonl").read_text()
    assert tropd("train", *fields).code == 0
    assert (out / "metrics-1.jsonl").read_text() == before and (out / "rollouts-1").is_dir(), "nothing is lost"


def test_a_run_that_is_complete_is_left_as_it_is(workspace, tropd):
    fields = workspace.fields(max_steps=2, save_strategy="steps", save_steps=1)
    assert tropd("train", *fields).code == 0
    out = workspace.root / "out"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    outcome = tropd("train", *fields, "--resume_from_checkpoint", "latest")
    assert outcome.code == 0 and "out is complete (2 steps); raise max_steps to continue." in outcome.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_goes_on_by_its_own_method_and_says_what_else_changed(workspace, tropd):
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    assert tropd("train", *workspace.fields(**saving)).code == 0
    go_on = {**saving, "max_steps": 3, "resume_from_checkpoint": "latest"}
    refused = tropd("train", *workspace.fields(**go_on, method="reopold"))
    assert refused.code == 2
    assert "the run in out began with a different method" in refused.err and "name 'opd' → 'reopold'" in refused.err
    changed = tropd("train", *workspace.fields(**go_on, learning_rate=1e-4))
    assert changed.code == 0
    assert "learning_rate was 5e-06 when the run in out began, and is 0.0001 now" in changed.err
    assert json.loads((workspace.root / "out/run-1.json").read_text())["configuration"]["learning_rate"] == 5e-6


def test_the_card_of_a_run_names_its_models_and_its_method(workspace, tropd):
    assert tropd("train", *workspace.fields()).code == 0
    card = (workspace.root / "out/README.md").read_text()
    for words in ("# student, distilled from teacher", "method `opd`", "| optimiser steps | 1 |", "run.json"):
        assert words in card
    assert "| prompts | 8 rows of prompts.jsonl |" in card and "AutoModelForCausalLM" in card
    assert "None" not in card and "Evaluation" not in card
    tags = ["tropd", "on-policy-distillation", "opd"]
    assert ModelCard(card).data.to_dict() == {"library_name": "transformers", "tags": tags}


def test_an_adapter_is_trained_alone(workspace, tropd):
    outcome = tropd("train", *workspace.fields(max_steps=1, use_peft=True, lora_r=2, learning_rate=1e-2))
    assert outcome.code == 0, outcome.err
    saved = load_file(workspace.root / "out/adapter_model.safetensors")
    assert saved and all("lora_" in name for name in saved)
    assert max(tensor.shape[0] for name, tensor in saved.items() if "lora_A" in name) == 2
    assert any(tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    card = (workspace.root / "out/README.md").read_text()
    assert ModelCard(card).data["library_name"] == "peft" and "merge_and_unload()" in card


def test_evaluation_prompts_are_evaluated(workspace, tropd):
    evaluation = workspace.jsonl("held_out.jsonl", [{"prompt": "1+2+3="}, {"prompt": "4+5+6="}])
    fields = workspace.fields(eval_data=evaluation, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8)
    assert tropd("train", *fields).code == 0
    assert any("eval_kl/k1" in entry for entry in metrics(workspace.root / "out"))


def test_a_reward_of_ones_own_is_monitored(workspace):
    """Through the real command, which starts without the working directory on Python's path."""
    workspace.text("my_rewards.py", "def length(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    command = Path(sys.executable).with_name("tropd")
    fields = workspace.fields(reward_funcs="my_rewards.length")
    subprocess.run([command, "train", *fields], check=True, capture_output=True, timeout=300)
    assert any(entry.get("reward", 0) > 0 for entry in metrics(workspace.root / "out"))


def test_evaluation_data_are_read_whole_and_without_the_training_sets_columns(workspace, tropd):
    evaluation = workspace.jsonl("held_out.jsonl", [{"question": f"{n}+2+3="} for n in range(6)])
    data = workspace.jsonl("rows.jsonl", [{"question": f"{n}+1=", "solution": "ones:"} for n in range(4)])
    fields = workspace.fields(
        data=data,
        eval_data=evaluation,
        eval_strategy="steps",
        eval_steps=1,
        max_prompts=2,
        per_device_eval_batch_size=8,
    )
    columns = ["--columns.prompt", "question", "--columns.teacher_response", "solution"]
    outcome = tropd("train", *fields, *columns)
    assert outcome.code == 0, outcome.err


def test_columns_are_renamed_by_the_configuration(workspace, tropd):
    data = workspace.jsonl("gsm.jsonl", [{"question": "1+2+3=", "solution": "ones:1+2=3"}] * 2)
    columns = ["--columns.prompt", "question", "--columns.teacher_response", "solution"]
    outcome = tropd("train", *workspace.fields(data=data, method="tropd"), *columns)
    assert outcome.code == 0, outcome.err
    assert "1 of 2 prompts are different" in outcome.err
    assert "the teacher will write them" not in outcome.err


def test_overlong_prompts_are_dropped_on_request_and_said(workspace, tropd):
    data = workspace.jsonl("rows.jsonl", [{"prompt": "1+2="}, {"prompt": "3+4="}, {"prompt": "1+" * 300}])
    outcome = tropd("train", *workspace.fields(data=data, overlong_prompts="drop"))
    assert outcome.code == 0 and "2 prompts from" in outcome.err
    assert "warning: 1 of 3 prompts are excluded" in outcome.err and "rows.jsonl:3" in outcome.err


def test_problems_of_an_evaluation_file_in_the_training_data_are_reported(workspace, tropd):
    held_out = workspace.jsonl("held_out.jsonl", [{"prompt": "1+2+3="}, {"prompt": "4+5+6="}])
    data = workspace.jsonl("rows.jsonl", [{"prompt": "4 + 5 + 6 ="}, {"prompt": "7+8+9="}])
    outcome = tropd("train", *workspace.fields(data=data, overlap_with=held_out))
    assert outcome.code == 0
    assert "1 of the 2 problems of held_out.jsonl are in rows.jsonl" in outcome.err


@pytest.mark.slow
def test_two_processes_train_through_the_command_line(workspace):
    fields = workspace.fields(max_steps=2, per_device_train_batch_size=4, preflight_prompts=2)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "tropd", "train", *fields],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: 2 steps") == 1, "one process speaks"
    assert (workspace.root / "out/model.safetensors").is_file()


@pytest.mark.parametrize("lost", ["all", "cut", "nothing"])
def test_a_run_killed_while_its_final_model_was_saved_gets_it_by_resuming(workspace, tropd, lost):
    fields = workspace.fields(max_steps=2, save_strategy="steps", save_steps=1)
    assert tropd("train", *fields).code == 0
    weights = workspace.root / "out/model.safetensors"
    whole, text = weights.read_bytes(), (workspace.root / "out/config.json").read_text()
    if lost == "all":
        for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
            (workspace.root / "out" / name).unlink()
    elif lost == "cut":
        weights.write_bytes(whole[:-9])
    outcome = tropd("train", *fields, "--resume_from_checkpoint", "latest")
    said = " ".join((outcome.out + outcome.err).split())
    assert outcome.code == 0 and "is complete (2 steps)" in said
    assert ("had no final model; it was written from out/checkpoint-2" in said) is (lost != "nothing")
    assert weights.read_bytes() == whole and (workspace.root / "out/config.json").read_text() == text
    loaded = AutoModelForCausalLM.from_pretrained(workspace.root / "out")
    assert loaded.generation_config.eos_token_id is not None
    assert not (workspace.root / "out/optimizer.pt").exists() and not (workspace.root / "out/.writing").exists()


def test_a_finished_run_whose_checkpoint_was_altered_gets_no_model_from_it(workspace, tropd):
    fields = workspace.fields(max_steps=1, save_strategy="steps", save_steps=1, checkpoint_digests=True)
    assert tropd("train", *fields).code == 0
    (workspace.root / "out/model.safetensors").unlink()
    altered = workspace.root / "out/checkpoint-1/model.safetensors"
    altered.write_bytes(altered.read_bytes()[:-4] + b"abcd")
    outcome = tropd("train", *fields, "--resume_from_checkpoint", "latest")
    assert outcome.code == 2 and "model.safetensors was altered after it was written" in " ".join(outcome.err.split())
