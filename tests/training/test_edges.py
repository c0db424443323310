"""Edges that once went wrong, each with the smallest test that would have caught it."""

import copy

import pytest
import torch

from training import tiny
from training.tiny import build, clone
from tropd.modeling import expose_hidden_states


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


def test_batches_of_one_evaluation_have_gate_draws_of_their_own(tmp_path, student, teacher):
    trainer = build(tmp_path, clone(student), clone(teacher), "fkl_outlier")
    trainer.model.eval()
    assert [trainer._first_row(4), trainer._first_row(4)] == [0, 4]
    trainer.model.train()
    assert [trainer._first_row(4), trainer._first_row(4)] == [0, 0]
    trainer.model.eval()
    assert trainer._first_row(4) == 0, "a new evaluation starts over"
