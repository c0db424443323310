"""One teacher pass for each batch; the top-k only where the method reads it; vocabularies padded to any size."""

import math

import pytest
import torch

from training import tiny
from training.tiny import EOS, build, clone, recorded, replay, run
from tropd.objective.loss import FullVocabularyTerm, TopKTerm


def forwards(model):
    """Counts the rows and calls of a model's forward passes; those of one row ask how the model is read, once a run."""
    calls = []

    def count(module, args, kwargs):
        rows = kwargs["input_ids"].shape[0]
        calls.extend([rows] if rows > 1 else [])

    model.model.register_forward_pre_hook(count, with_kwargs=True)
    return calls


@pytest.mark.parametrize("method", ["opd", "tropd", "jsd", "gkd", "eopd", "fkl", "tropd_support"])
def test_the_teacher_reads_each_rollout_once(tmp_path, student, teacher, method):
    master = clone(teacher)
    calls = forwards(master)
    settings = {"guidance_schedule": "none"} if method == "tropd" else {}
    trainer = build(tmp_path, clone(student), master, method, script=replay(recorded(8)), max_steps=2, **settings)
    trainer.train()
    assert calls == [8, 8]


def test_micro_batches_and_several_updates_do_not_ask_the_teacher_again(tmp_path, student, teacher):
    master = clone(teacher)
    calls = forwards(master)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2}
    build(tmp_path, clone(student), master, "opd", script=replay(recorded(8)), max_steps=4, **settings).train()
    assert calls == [4, 4, 4, 4]  # four optimiser steps are two batches of two passes


def test_the_teachers_own_batch_size_is_used(tmp_path, student, teacher):
    master = clone(teacher)
    calls = forwards(master)
    build(tmp_path, clone(student), master, "opd", script=replay(recorded(8)), teacher_batch_size=3).train()
    assert calls == [3, 3, 2]


def test_the_student_is_scored_once_and_updated_once(tmp_path, student, teacher):
    pupil = clone(student)
    calls = forwards(pupil)
    build(tmp_path, pupil, clone(teacher), "tropd", script=replay(recorded(8)), guidance_schedule="none").train()
    assert calls == [8, 8]


@pytest.mark.parametrize("method", ["tropd", "fkl_outlier", "eopd", "aopd"])
def test_the_topk_is_kept_for_outliers_alone(tmp_path, student, teacher, method):
    settings = {"teacher_entropy_tau": 3.0} if method == "eopd" else {}
    done = run(tmp_path, student, teacher, method, script=replay(recorded(8)), fkl_top_k=4, **settings)
    (batch,) = done.trainer._buffered_inputs
    assert isinstance(batch.direct, TopKTerm)
    outliers = batch.signals.outlier_weight.nonzero()[:, 0]
    assert 0 < len(outliers) < len(batch.signals.outlier_weight)
    assert torch.equal(batch.direct.index, outliers)
    assert batch.direct.token_ids.shape == (len(outliers), 4)


def test_jsd_keeps_it_for_every_student_token_and_full_methods_keep_hidden_states(tmp_path, student, teacher):
    (jsd,) = run(tmp_path, student, teacher, "jsd", script=replay(recorded(8))).trainer._buffered_inputs
    (gkd,) = run(tmp_path, student, teacher, "gkd", script=replay(recorded(8))).trainer._buffered_inputs
    assert len(jsd.direct.index) == jsd.signals.trust_weight.sum() == sum(map(len, recorded(8)))
    assert isinstance(gkd.direct, FullVocabularyTerm)
    assert gkd.direct.teacher_hidden.shape == (sum(map(len, recorded(8))), 24)


# ---------------------------------------------------------------------- padded vocabularies


@pytest.mark.parametrize("method", ["opd", "tropd", "gkd", "jsd", "fkl"])
@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(64, 72), (72, 64)])
def test_padded_vocabularies_train(tmp_path, method, student_rows, teacher_rows):
    """Random heads sample padding ids freely, which real ones do only rarely."""
    pupil, master = tiny.llama(0, rows=student_rows), tiny.qwen(1, rows=teacher_rows)
    done = run(tmp_path, pupil, master, method, max_steps=2)
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in done.logs)


def test_padding_rows_that_no_model_believes_in_change_nothing(tmp_path, student):
    """Eight rows more whose logits lie 1e4 below: the teacher's own softmax is untouched, and so is the step."""
    master = tiny.llama(5)
    padded = tiny.llama(5, rows=72)
    with torch.no_grad():
        for name, parameter in padded.named_parameters():
            source = dict(master.named_parameters())[name]
            parameter.zero_()
            parameter[: len(source)] = source
    padded.lm_head.bias = torch.nn.Parameter(torch.zeros(72).index_fill(0, torch.arange(64, 72), -1e4))
    recorder = tiny.Recorder()
    build(tmp_path, clone(student), padded, "fkl_outlier", script=replay(recorded(8)), callbacks=[recorder]).train()
    plain = run(tmp_path, student, master, "fkl_outlier", script=replay(recorded(8)))
    assert tiny.largest_difference(recorder.steps[0].gradients, plain.gradients) < 1e-5


def test_ids_the_teacher_cannot_read_are_left_out_and_counted(tmp_path):
    written = [[20, 21, 70, 22, EOS], *recorded(8)[1:]]  # 70 is one of the student's padding rows
    done = run(tmp_path, tiny.llama(0, rows=72), tiny.qwen(1), "opd", script=replay(written))
    assert done.logs[0]["teacher/nonfinite_tokens"] == 3
    assert done.logs[0]["regions/num_trust"] == sum(map(len, written)) - 3


def test_a_teacher_too_small_for_the_tokenizer_is_refused(tmp_path, student):
    with pytest.raises(ValueError, match="uses token ids up to 52, but the teacher scores only 48 ids"):
        build(tmp_path, clone(student), tiny.qwen(1, rows=48))


def test_tokenizers_that_disagree_are_refused_by_token(tmp_path, student, teacher):
    other = tiny._tokenizer("bacdefghijklmnopqrstuvwxyz0123456789 =+;:?<>/.")
    with pytest.raises(ValueError, match=r"disagree on 2 of 53 tokens .*'a' is 4 for the student and 5 for"):
        build(tmp_path, clone(student), clone(teacher), trainer_options={"teacher_processing_class": other})
