"""Estimates of a prepared run: steps, adapters, lengths, room."""

import json
from dataclasses import replace

import pytest
from transformers import MambaConfig

import shipped
from tropd.run.configuration import resolve
from tropd.run.costs import NoEstimate, adapter_parameters, check_room, num_steps, plan_of, shape_of, time_of
from tropd.run.prepare import prepare


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = shipped.rows(16)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**fields):
        settings = {"student": shipped.student_path(), "teacher": shipped.teacher_path(), "data": "prompts.jsonl"}
        settings |= {"output_dir": "out", "max_completion_length": 64, "method": "opd", **fields}
        return prepare(resolve(None, [word for name, value in settings.items() for word in (f"--{name}", str(value))]))

    return make


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"num_train_epochs": 1}, 8),
        ({"num_train_epochs": 3}, 24),
        ({"num_train_epochs": 0.3}, 3),
        ({"num_train_epochs": 1, "num_iterations": 2}, 16),
        ({"num_train_epochs": 1, "gradient_accumulation_steps": 2}, 4),
        ({"num_train_epochs": 1, "steps_per_generation": 4, "gradient_accumulation_steps": 2}, 4),
    ],
)
def test_the_steps_of_a_run_are_those_that_the_trainer_takes(inputs, fields, steps):
    made = inputs(**fields)
    assert num_steps(made.args, len(made.data)) == steps


def test_an_adapter_is_counted_exactly(inputs):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from tropd.run.adapter import adapter

    settings = inputs(use_peft=True, lora_r=4).configuration.settings
    real = get_peft_model(AutoModelForCausalLM.from_pretrained(shipped.student_path()), adapter(settings))
    trained = sum(parameter.numel() for parameter in real.parameters() if parameter.requires_grad)
    assert adapter_parameters(real.config, settings) == trained
    assert plan_of(inputs(use_peft=True, lora_r=4)).setup.trainable == trained


def test_time_follows_the_measured_length_of_a_response(inputs):
    made = inputs(max_steps=10, gradient_checkpointing=False)

    class Times:
        num_processes, rollout_seconds, student_seconds, teacher_seconds = 1, 2.0, 1.0, 0.5
        response_tokens, scored_tokens = 1000, 1000

    short, long = (time_of(plan_of(made, response_tokens=n), Times).total for n in (16.0, 64.0))
    assert long == pytest.approx(4 * short, rel=1e-6)
    assert time_of(plan_of(made, response_tokens=16.0), Times).parts["rollout"] == pytest.approx(8 * 16 / 500)


def test_an_architecture_without_attention_has_no_estimate(inputs):
    made = inputs(max_steps=1)
    unknown = replace(made.student, name="mamba", config=MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=23))
    with pytest.raises(NoEstimate, match="memory and time of mamba cannot be estimated"):
        shape_of(unknown)


def test_a_run_that_goes_on_needs_only_what_is_not_there_yet(inputs, tmp_path, monkeypatch):
    import shutil

    made = inputs(max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    plan = plan_of(made)
    room = plan.disk.total - plan.disk.checkpoint
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, room))
    with pytest.raises(ValueError, match="output_dir is 'out'"):
        check_room(made, plan)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"0" * plan.disk.checkpoint)
    made.args.resume_from_checkpoint = "latest"
    check_room(made, plan)
