"""The shipped pair loads with plain Transformers, and the teacher is far better than the student."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tropd.proving_ground import build_pair
from tropd.proving_ground.arithmetic import grade
from tropd.proving_ground.build_pair import LEVEL_SHARES, STUDENT, accuracy, distance, train
from tropd.proving_ground.pair import (
    build_tokenizer,
    prompts,
    student_config,
    student_path,
    teacher_config,
    teacher_path,
)

SHIPPED_BYTES = 8_000_000


@pytest.fixture(scope="module")
def pair():
    return tuple(AutoModelForCausalLM.from_pretrained(path()).eval() for path in (teacher_path, student_path))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(student_path())


def test_prompts_are_repeatable_records_of_text():
    records = prompts("validation", 20, seed=1)
    assert records == prompts("validation", 20, seed=1) != prompts("validation", 20, seed=2)
    assert all(grade(record["prompt"], record["solution"]).correct for record in records)
    assert all(record["solution"].endswith(f"total:{record['answer']}") for record in records)


def test_text_survives_the_tokenizer_and_adds_no_token_of_its_own(tokenizer):
    text = "347+582=ones:7+2=9,;total:929"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids[7:9]) == ["=", "ones:"]
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_pad_bos_and_eos_are_three_tokens(tokenizer):
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.padding_side == "left"


def test_both_models_speak_the_same_tokens(tokenizer):
    teacher_tokenizer = AutoTokenizer.from_pretrained(teacher_path())
    assert teacher_tokenizer.get_vocab() == tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_shipped_models_match_their_architectures_and_fit_the_package(pair, tokenizer):
    for model, config in zip(pair, (teacher_config(), student_config()), strict=True):
        assert model.config.num_hidden_layers == config.num_hidden_layers
        assert model.config.hidden_size == config.hidden_size
        assert model.config.vocab_size == len(tokenizer)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    shipped = [file for path in (teacher_path(), student_path()) for file in path.iterdir()]
    assert sum(file.stat().st_size for file in shipped) < SHIPPED_BYTES


def test_the_teacher_is_far_better_than_the_student(pair, tokenizer):
    teacher, student = (accuracy(model, tokenizer, "test", 50) for model in pair)
    assert teacher >= 0.9
    assert 0.1 <= student <= 0.6


def test_the_student_starts_at_a_distance_from_the_teacher(pair, tokenizer):
    teacher, student = pair
    measured = distance(teacher, student, tokenizer, count=48)
    assert measured["total_variation_exact"] > 0.035
    assert measured["total_variation_sampled"] == pytest.approx(measured["total_variation_exact"], abs=0.02)
    assert distance(teacher, teacher, tokenizer, count=4)["total_variation_exact"] == 0.0


def test_padding_on_the_left_does_not_change_the_student(pair, tokenizer):
    student, prompt = pair[1], prompts("test", 1, seed=0)[0]["prompt"]
    alone = student(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    padded = tokenizer([prompt, "1000+2000+3000+4000="], return_tensors="pt", padding=True)
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    beside = student(**padded, position_ids=positions).logits[0, -1]
    torch.testing.assert_close(beside, alone, atol=1e-4, rtol=1e-4)


def test_the_build_record_says_how_the_pair_came_about():
    record = json.loads((student_path().parent / "BUILD.json").read_text())
    assert record["teacher"]["test_accuracy_greedy"] >= 0.95
    assert 0.2 <= record["student"]["test_accuracy_greedy"] <= 0.5
    assert record["start_distance"]["total_variation_sampled"] > 0.05
    assert record["level_shares_in_training"] == {str(level): share for level, share in LEVEL_SHARES.items()}


def test_an_interrupted_build_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(build_pair, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(build_pair, "accuracy", lambda *_: 0.3)
    plan = replace(STUDENT, steps=6, batch_size=2, steps_between_evaluations=6)
    whole, _ = train(plan, student_config(), build_tokenizer(), tmp_path / "whole", seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(build_pair, "_batch", _interrupt_at_step(4))
        with pytest.raises(KeyboardInterrupt):
            train(plan, student_config(), build_tokenizer(), tmp_path / "parts", seed=0)
    resumed, progress = train(plan, student_config(), build_tokenizer(), tmp_path / "parts", seed=0)
    assert progress.step == 6
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)


def test_a_model_outside_its_band_is_refused_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(build_pair, "accuracy", lambda *_: 0.7)
    plan = replace(STUDENT, steps=1, batch_size=2, steps_between_evaluations=1)
    with pytest.raises(RuntimeError, match=r"student stands at 0\.700 .* outside \[0\.25, 0\.5\]"):
        train(plan, student_config(), build_tokenizer(), tmp_path, seed=0)


def _interrupt_at_step(last):
    batch = build_pair._batch

    def interrupting(tokenizer, size, seed, step):
        if step == last:
            raise KeyboardInterrupt
        return batch(tokenizer, size, seed, step)

    return interrupting
