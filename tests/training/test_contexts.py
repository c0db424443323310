"""Prompts that a model cannot read are refused in Python as on the command line."""

import pytest

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
