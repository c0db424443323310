"""Edges that once went wrong, each with the smallest test that would have caught it."""

import copy

import pytest
import torch

from training import tiny
from training.tiny import build, clone
from tropd.models.hidden_states import expose_hidden_states
from tropd.objective import Head
from tropd.training.guards.step_guards import CollapseGuard


def test_a_copy_of_an_exposed_model_computes_with_its_own_weights(student):
    model = clone(student)
    expose_hidden_states(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    logits = twin(torch.tensor([tiny.ids("a+b=")])).logits
    torch.testing.assert_close(logits, student(torch.tensor([tiny.ids("a+b=")])).logits)


def test_a_teacher_response_beyond_the_students_vocabulary_is_refused_with_its_prompt(tmp_path, student, teacher):
    rows = [{"prompt": "a+b=", "teacher_response": [5, 10_000]}] * 2
    with pytest.raises(ValueError, match=r"teacher_response of prompt 'a\+b='.*10000"):
        build(tmp_path, clone(student), clone(teacher), "tropd", rows=rows).train()


def test_batches_of_one_evaluation_have_gate_draws_of_their_own_and_evaluations_the_same(tmp_path, student, teacher):
    rows = [{"prompt": f"{first}+b="} for first in "abcdefgh"]
    trainer = build(
        tmp_path,
        clone(student),
        clone(teacher),
        "fkl_outlier",
        trainer_options={"eval_dataset": tiny.same_dataset(rows)},
        per_device_eval_batch_size=8,
    )
    begun, original = [], trainer.rollout_stage.begin
    trainer.rollout_stage.begin = lambda rows: begun.append(original(rows)) or begun[-1]
    trainer.evaluate()
    trainer.evaluate()
    first_rows = [first_row for _, first_row in begun]
    half = len(first_rows) // 2
    assert first_rows == [8 * batch for batch in range(half)] * 2
    assert half > 1


def test_rollouts_that_stop_ending_trip_the_guard_and_those_that_never_ended_do_not():
    guard = CollapseGuard(share=0.9, patience=2)
    for ended in (0.0, 0.0, 0.0):
        guard.observe(0.0, ended)
    assert not guard.tripped
    for ended in (0.8, None, 0.05, 0.05):
        guard.observe(0.0, ended)
    assert guard.tripped


def test_a_new_run_in_a_used_directory_sets_the_old_records_aside(tmp_path, student, teacher):
    for _ in range(2):
        build(tmp_path, clone(student), clone(teacher), "opd", rollout_log_steps=1).train()
    old, new = (tmp_path / name for name in ("metrics-1.jsonl", "metrics.jsonl"))
    assert len(old.read_text().splitlines()) == len(new.read_text().splitlines()) > 0
    assert (tmp_path / "rollouts-1").is_dir() and (tmp_path / "run-1.json").is_file()


def test_the_vocabularies_of_the_paper_padded_to_151936_and_152064_train(tmp_path):
    for method in ("tropd", "gkd"):
        done = tiny.run(
            tmp_path / method,
            tiny.llama(seed=1, rows=151936, width=8),
            tiny.llama(seed=2, rows=152064, width=8),
            method,
            script=tiny.replay(tiny.recorded(8)),
        )
        assert tiny.largest(done.gradients) > 0


def test_half_precision_logits_are_not_rounded_on_the_cpu():
    # Rounded to bfloat16, logits of up to 30 would be off by up to 0.06.
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).bfloat16() for n in (3, 9))
    expected = hidden.double() @ weight.double().t()
    torch.testing.assert_close(Head(weight).logits(hidden).double(), expected, rtol=0, atol=1e-4)


def test_fewer_prompts_than_a_step_takes_are_refused_instead_of_training_nothing(tmp_path, student, teacher):
    trainer = build(tmp_path, clone(student), clone(teacher), "opd", per_device_train_batch_size=32)
    with pytest.raises(
        ValueError, match=r"the training data has 4 prompts, but one rollout batch takes 8 .*Lower per_de"
    ):
        trainer.train()


def test_a_student_saved_with_use_cache_off_still_writes_with_a_cache(tmp_path, student, teacher, caplog):
    model = clone(student)
    model.config.use_cache = False  # what a run with gradient checkpointing leaves in a saved configuration
    trainer = build(tmp_path, model, clone(teacher), "opd")
    with caplog.at_level("DEBUG", logger="tropd"):
        trainer.train()
    assert "loop decodes" not in caplog.text
    asked = build(tmp_path, clone(student), clone(teacher), "opd", generation_kwargs={"use_cache": False})
    assert asked.generation_config.use_cache is False


@pytest.mark.parametrize("method", ["jsd", "gkd", "tropd", "eopd"])
@pytest.mark.parametrize("doubled", [(False, True), (True, False), (True, True)])
def test_models_in_double_precision_train_in_any_pairing(method, doubled, tmp_path):
    models = [
        model.double() if twice else model for model, twice in zip((tiny.llama(1), tiny.llama(2)), doubled, strict=True)
    ]
    trainer = build(tmp_path, *models, method, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0
