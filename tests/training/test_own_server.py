"""A run with `tropd serve` is the run with the same teacher in this process, to the last bit."""

import pytest
import torch

from serving import Server
from training import tiny
from training.test_served_teacher import ROWS, logged, regions, trained
from training.tiny import build, clone, largest_difference
from tropd.objective.methods import get_method
from tropd.training import step
from tropd.training.guards.errors import TeacherFailed

SETTINGS = {"max_steps": 3, "teacher_batch_size": 3}


def teacher():
    return clone(tiny.qwen(1, width=24))


@pytest.fixture
def served():
    with Server(teacher()) as server:
        yield server


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("tropd", {}),
        ("tropd", {"temperature": 0.8}),
        ("tropd_share", {"max_steps": 2}),
        ("fkl_outlier", {"max_steps": 1}),
        ("eopd", {"max_steps": 1, "teacher_entropy_tau": 3.5}),
        ("jsd", {"max_steps": 1}),
        ("opd", {"max_steps": 1}),
    ],
)
def test_it_trains_bit_for_bit_as_the_same_teacher_in_this_process(tmp_path, served, method, settings):
    here = trained(tmp_path / "here", teacher(), method, **SETTINGS | settings)
    there = trained(tmp_path / "there", served.url, method, **SETTINGS | settings)
    timed = ("time", "second", "speed", "memory")
    ours, theirs = (
        [{n: v for n, v in entry.items() if not any(word in n for word in timed)} for entry in run.state.log_history]
        for run in (here, there)
    )
    assert str(ours) == str(theirs) and "entropy/teacher" in ours[0]  # as text, since NaN is not NaN
    assert largest_difference(there.recorder.steps[-1].weights, here.recorder.steps[-1].weights) == 0
    assert regions(tmp_path / "there") == regions(tmp_path / "here")


def test_prefixes_that_the_server_writes_are_those_of_the_teacher_here(tmp_path, served):
    rows = [{"prompt": row["prompt"]} for row in ROWS]
    here = trained(tmp_path / "here", teacher(), rows=rows, **SETTINGS)
    there = trained(tmp_path / "there", served.url, rows=rows, **SETTINGS)
    assert regions(tmp_path / "there") == regions(tmp_path / "here")
    assert "guidance" in {region for row in regions(tmp_path / "here") for _, region in row}
    assert logged(there) == logged(here)


def test_a_server_killed_and_restarted_in_the_middle_of_a_step_changes_nothing(tmp_path, served):
    whole = trained(tmp_path / "whole", served.url, **SETTINGS)
    calls = []

    def restarting(trainer):
        score = trainer.teachers.only.score

        def watched(*texts, **options):
            calls.append(texts)
            if len(calls) == 2:
                served.stop()
                served.start()
            return score(*texts, **options)

        trainer.teachers.only.score = watched

    broken = trained(tmp_path / "broken", served.url, prepare=restarting, **SETTINGS)
    assert len(calls) == 3 and logged(broken) == logged(whole)
    assert largest_difference(broken.recorder.steps[-1].weights, whole.recorder.steps[-1].weights) == 0


def test_another_model_in_the_middle_of_a_run_stops_it_and_a_run_goes_on_with_its_own_here_or_there(tmp_path, served):
    saved = {"save_strategy": "steps", "save_steps": 1}
    trained(tmp_path, served.url, "opd", max_steps=1, **saved)
    resume = str(tmp_path / "checkpoint-1")
    assert trained(tmp_path, teacher(), "opd", max_steps=2, resume=resume, **saved).state.global_step == 2

    def exchange(trainer):
        served.stop()
        served.model = clone(tiny.qwen(2, width=24))
        served.start()

    with pytest.raises(TeacherFailed, match="a different model than"):
        trained(tmp_path / "other", served.url, "opd", prepare=exchange, max_steps=1)
    with pytest.raises(ValueError, match="the teacher is not what the run began with"):
        trained(tmp_path, served.url, "opd", max_steps=3, resume=resume, **saved)


@pytest.mark.parametrize("method", ["tropd", "fkl", "jsd", "aopd", "entropy_opd", "eopd", "fkl_outlier", "reopold"])
def test_no_token_needs_a_top_k_that_the_servers_bound_leaves_out(method):
    method = get_method(method)
    torch.manual_seed(0)
    count = 400
    student_logp, teacher_logp = -3 * torch.rand(2, count)
    teacher_logp[:40] = student_logp[:40] + 1e-7 * torch.randn(40)  # beside the border
    teacher_logp[40:44] = -torch.inf
    teacher_logp[44:48] = -150.0
    entropy, mask = torch.rand(count) * 2, torch.rand(count) < 0.8
    uniforms = torch.rand(count, dtype=torch.float64) if method.gate == "bernoulli" else None
    threshold = torch.full((count,), 1.2) if method.gate == "student_entropy" else None
    if uniforms is not None:
        uniforms[44:46], uniforms[46:48] = 0.0, 1 - 2**-53
    student = step.StudentScores(*[student_logp] * 3, entropy)
    gate = step.Gate(method, student, mask, uniforms, threshold, *torch.zeros(2, count))
    gate.divide(teacher_logp, entropy.flip(0), slice(None))
    weights = gate.trust + gate.outlier if method.trust == "jsd" else gate.outlier
    sent = teacher_logp <= gate.most_of_an_outlier()
    assert not ((weights > 0) & ~sent).any()
    if method.gate == "bernoulli":
        assert 0.2 * count < sent.sum() <= (weights > 0).sum() + 8


def test_a_run_that_reads_whole_distributions_is_refused_and_a_batch_size_is_of_use(tmp_path, served, caplog):
    with pytest.raises(ValueError, match="method 'gkd' needs whole distributions"):
        build(tmp_path, tiny.llama(0), served.url, "gkd", rows=ROWS)
    build(tmp_path, tiny.llama(0), served.url, "opd", rows=ROWS, teacher_batch_size=2)
    assert not [record for record in caplog.records if "no effect" in record.message]
