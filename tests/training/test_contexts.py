"""Prompts that a model cannot read are refused in Python as on the command line."""

import pytest
from transformers import TrainerCallback

from training import tiny


def learn(tmp_path, prompt, teacher_positions=128):
    student, teacher = tiny.llama(seed=1), tiny.llama(seed=2)
    student.config.max_position_embeddings, teacher.config.max_position_embeddings = 128, teacher_positions
    rows = [{"prompt": prompt}, {"prompt": "a="}]
    tiny.build(tmp_path, student, teacher, "opd", rows=rows, max_completion_length=8).train()


def test_a_prompt_and_a_response_may_fill_the_positions(tmp_path):
    learn(tmp_path, "e" * 120)


def test_one_token_more_is_refused_with_what_fits(tmp_path):
    with pytest.raises(ValueError, match=r"^a prompt has 121 tokens for the student.*128 positions.*at most 7, or"):
        learn(tmp_path, "e" * 121)


def test_a_teacher_with_fewer_positions_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^a prompt has 30 tokens for the teacher.*made for 32 positions.*at most 2"):
        learn(tmp_path, "e" * 30, teacher_positions=32)


def test_a_prompt_without_a_token_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^the student is given a prompt without a token"):
        learn(tmp_path, "")


class NoStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        raise AssertionError("training has begun")


LAST = {
    "of the student": ({"prompt": "e" * 121}, "a prompt has 121 tokens for the student"),
    "of the teacher": ({"prompt": "a=", "teacher_prompt": "e" * 125}, "a prompt has 125 tokens for the teacher"),
    "empty": ({"prompt": ""}, "the student is given a prompt without a token"),
}


@pytest.mark.parametrize("held", ["training", "evaluation", "evaluation by name"])
@pytest.mark.parametrize("last", LAST)
def test_the_last_row_of_the_data_is_refused_before_the_first_step(held, last, tmp_path):
    student, teacher = tiny.llama(seed=1), tiny.llama(seed=2)
    student.config.max_position_embeddings = teacher.config.max_position_embeddings = 128
    row, sentence = LAST[last]
    good = [{"prompt": "a=", "teacher_prompt": None}] * 40
    bad = [*good, good[0] | row]
    data = {"evaluation": tiny.same_dataset(bad), "evaluation by name": {"math": tiny.same_dataset(bad)}}
    options = {"eval_dataset": data[held]} if held in data else {}
    settings = {"rows": good if held in data else bad, "max_completion_length": 8, "trainer_options": options}
    trainer = tiny.build(tmp_path, student, teacher, "opd", callbacks=[NoStep()], **settings)
    with pytest.raises(ValueError, match=sentence):
        trainer.train()


def test_a_teacher_that_writes_is_not_asked_beyond_its_positions(tmp_path, monkeypatch):
    student, teacher = tiny.llama(seed=1), tiny.llama(seed=2)
    teacher.config.max_position_embeddings = 32
    trainer = tiny.build(tmp_path, student, teacher, "tropd", rows=[{"prompt": "e" * 30}] * 2, max_completion_length=8)
    monkeypatch.setattr(trainer.rollout_stage, "check_prompts", lambda data: None)  # as of a stream
    monkeypatch.setattr(type(trainer.teacher), "write", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(ValueError, match=r"^a prompt has 30 tokens for the teacher.*made for 32 positions"):
        trainer.train()


def rotating(model, kind):
    factors = {"original_max_position_embeddings": 16, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0} | (factors if kind == "longrope" else {})
    positions = 16 if kind == "dynamic" else 32
    settings = model.config.to_dict() | {"rope_parameters": rope, "max_position_embeddings": positions}
    return type(model)(type(model.config)(**settings))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_rotary_embedding_that_depends_on_the_batch_is_read_up_to_where_it_does(kind, role, tmp_path):
    def learn(length, **settings):
        models = {"student": tiny.llama(seed=1), "teacher": tiny.llama(seed=2)}
        models[role] = rotating(models[role], kind)
        settings = {"rows": [{"prompt": "e" * length}, {"prompt": "a="}], "max_completion_length": 8} | settings
        tiny.build(tmp_path, models["student"], models["teacher"], "opd", **settings).train()

    learn(8)
    with pytest.raises(ValueError, match=rf"9 tokens for the {role}.*beyond 16 its rotary embedding.*at most 7, or"):
        learn(9)
    if (kind, role) == ("longrope", "teacher"):
        learn(9, teacher_batch_size=1)
