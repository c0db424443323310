"""Benchmarks asked while training: graded as `tropd evaluate` grades, and without a trace in what is learned."""

import json
import random

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from training import tiny
from training.tiny import clone

ROWS = [{"question": f"{letter}+b=", "id": letter} for letter in "abcdefg"]
SETTINGS = {
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_benchmarks_temperature": 1.0,
    "eval_benchmarks_samples": 2,
    "eval_benchmarks_max_new_tokens": 8,
    "per_device_eval_batch_size": 4,
}


EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1}


def ends_early(prompts, completions, **columns):
    """Right are responses of fewer than 8 characters; and the random streams are moved, as a grader may."""
    random.random(), torch.rand(3)
    return [float(len(text) < 8) for text in completions]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return f"{path}@{__name__}:ends_early"


def evaluated(trainer):
    return {
        entry["step"]: {name: value for name, value in entry.items() if name.startswith("eval_benchmark/")}
        for entry in trainer.state.log_history
        if "eval_benchmark/own/accuracy" in entry
    }


def test_a_run_learns_the_same_bit_by_bit_with_benchmarks_and_without(tmp_path, pair, file):
    plain = tiny.run(tmp_path / "plain", *pair, max_steps=4)
    asked = tiny.run(tmp_path / "asked", *pair, eval_on_start=True, eval_benchmarks=[file], **SETTINGS)
    assert sorted(evaluated(asked.trainer)) == [0, 2, 4]
    for ours, theirs in zip(plain.steps, asked.steps, strict=True):
        assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)
    for ours, theirs in zip(plain.logs, asked.logs, strict=True):
        same = [name for name in ours if not name.startswith("speed/") and name not in ("step_time",)]
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


@pytest.mark.parametrize("adapter", [None, {"r": 4, "target_modules": ["q_proj"]}])
def test_beside_prompts_to_evaluate_on_there_is_one_record_with_both(tmp_path, pair, file, adapter):
    options = {"eval_dataset": tiny.same_dataset(), "peft_config": adapter and LoraConfig(**adapter)}
    run = tiny.run(tmp_path, *pair, eval_benchmarks=[file], trainer_options=options, **SETTINGS)
    entries = [entry for entry in run.trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4] == list(evaluated(run.trainer))
    assert all("eval_kl/k1" in entry and "eval_benchmark/own/length" in entry for entry in entries)


def test_metrics_are_what_the_responses_are(tmp_path, pair, file):
    trainer = tiny.build(tmp_path, *map(clone, pair), eval_benchmarks=[file], **SETTINGS)
    found = trainer.evaluate()
    stage = trainer.benchmarks
    ((_, prompted),) = stage.asked
    places = [(problem, turn) for problem in range(7) for turn in range(2)]
    responses = stage._write("own", places, prompted)
    alone = [stage._write("own", [place], prompted)[0] for place in places]
    assert responses == alone, "a sample is the same in any batch"
    texts = [trainer._tokenizer.decode([i for i in ids if i != tiny.EOS]) for ids in responses]
    assert found["eval_benchmark/own/accuracy"] == pytest.approx(sum(len(text) < 8 for text in texts) / 14)
    assert found["eval_benchmark/own/truncated_share"] == pytest.approx(sum(r[-1] != tiny.EOS for r in responses) / 14)
    assert 0 < found["eval_benchmark/own/accuracy"] < 1 and found["eval_benchmark/own/undecided_share"] == 0


def test_the_best_model_by_a_benchmark_is_the_final_one_and_a_resumed_run_measures_the_same(tmp_path, pair, file):
    chosen = {
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_benchmark/own/length",
        "save_final_model": True,
        "learning_rate": 0.02,
        "eval_benchmarks": [file],
        **SETTINGS,
    }
    trainer = tiny.build(tmp_path, *map(clone, pair), greater_is_better=True, **chosen)
    trainer.train()
    lengths = {step: found["eval_benchmark/own/length"] for step, found in evaluated(trainer).items()}
    best = max(lengths, key=lengths.get)
    assert trainer.state.best_global_step == best and trainer.state.best_metric == lengths[best]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / f"checkpoint-{best}"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = tiny.build(tmp_path, *map(clone, pair), greater_is_better=True, **chosen)
    before = evaluated(trainer)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert evaluated(again) == before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"eval_benchmarks_samples": 2}, "eval_benchmarks_samples is 2, but eval_benchmarks names none"),
        ({"eval_benchmarks": ["gsm8k"]}, r"eval_strategy is 'no', so they are never asked"),
        ({"eval_benchmarks": ["gsm8k"], **EVERY_STEP}, "eval_benchmarks_data is not set"),
        ({"eval_benchmarks": ["gsm9k"], **EVERY_STEP}, "eval_benchmarks has 'gsm9k'"),
        ({"eval_benchmarks": ["OWN", "OWN"], **EVERY_STEP}, "eval_benchmarks has two of the name 'own'"),
        ({"eval_benchmarks": ["OWN"], **EVERY_STEP, "eval_benchmarks_samples": 2}, "all samples of a problem would"),
        ({"eval_benchmarks": ["OWN"], **EVERY_STEP, "eval_benchmarks_max_new_tokens": 510}, "Lower it to 50[0-9] or"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, pair, file, settings, sentence):
    names = [file if name == "OWN" else name for name in settings.get("eval_benchmarks", [])]
    with pytest.raises(ValueError, match=sentence):
        tiny.build(tmp_path, *map(clone, pair), **settings | {"eval_benchmarks": names})
