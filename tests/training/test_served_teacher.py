"""A run with a served teacher is the run with the same teacher in this process; records, refusals and resumption."""

import json
import threading
import time

import pytest
import torch

from served_fake import FakeServer, of_model
from training import tiny
from training.tiny import Recorder, build, clone, largest_difference
from tropd.training.guards.errors import TeacherFailed
from tropd.training.logging.model_card import write_card

ROWS = [{"prompt": f"{first}+{second}=", "teacher_response": "ab;cd " * 2} for first in "abcdefgh" for second in "ijk"]
STEPS = 12


def trained(directory, teacher, method="tropd", *, prepare=None, rows=ROWS, resume=None, **settings):
    recorder = Recorder()
    settings = {"max_steps": STEPS, "rollout_log_steps": 1, "rollouts_per_log": 8} | settings
    trainer = build(directory, tiny.llama(0), teacher, method, rows=rows, callbacks=[recorder], **settings)
    if prepare is not None:
        prepare(trainer)
    trainer.train(resume_from_checkpoint=resume)
    trainer.recorder = recorder
    return trainer


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def regions(directory):
    """Of each logged rollout its tokens and their regions, step after step."""
    files = sorted((directory / "rollouts").iterdir())
    return [
        [(token["id"], token["region"]) for token in json.loads(line)["tokens"]]
        for file in files
        for line in file.read_text().splitlines()
    ]


@pytest.fixture
def served():
    with FakeServer(of_model(tiny.qwen(1, width=24)), tokenize=tiny.ids, most_topk=64) as server:
        yield server


ALIKE = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("mixture_opd", "tv_opd", "power_opd", "tropd_released")
]


@pytest.mark.parametrize("method", ["tropd", "opd", "jsd", "tropd_support", "resopd", "vopd", *ALIKE])
def test_it_trains_as_the_same_teacher_in_this_process(tmp_path, served, method):
    steps = STEPS if method == "tropd" else 3
    parts = {"baseline": "top_k"} if method == "vopd" else {}  # its own needs the whole distribution
    here = trained(tmp_path / "here", clone(tiny.qwen(1, width=24)), method, max_steps=steps, **parts)
    there = trained(tmp_path / "there", served.url, method, max_steps=steps, **parts)
    assert logged(there) == pytest.approx(logged(here), abs=1e-5) and len(logged(here)) == steps
    assert regions(tmp_path / "there") == regions(tmp_path / "here")
    if method == "tropd":
        met = {region for row in regions(tmp_path / "here") for _, region in row}
        assert met == {"trust", "outlier", "guidance"}
    assert largest_difference(there.recorder.steps[-1].weights, here.recorder.steps[-1].weights) < 1e-5
    assert logged(here, "entropy/teacher") and not logged(there, "entropy/teacher")


def test_a_server_killed_and_restarted_in_the_middle_of_a_step_changes_nothing(tmp_path, served):
    whole = trained(tmp_path / "whole", served.url, max_steps=4)
    plain, killed = served.scorer, threading.Event()

    def kill_once(ids, k):
        if k and not killed.is_set() and len(served.scored) > 30:
            killed.set()
            threading.Thread(target=restart).start()
            time.sleep(0.2)
        return plain(ids, k)

    def restart():
        served.stop()
        time.sleep(0.3)
        served.start()

    served.asked.clear()
    served.scorer = kill_once
    broken = trained(tmp_path / "broken", served.url, max_steps=4)
    assert killed.is_set() and logged(broken) == logged(whole)
    assert largest_difference(broken.recorder.steps[-1].weights, whole.recorder.steps[-1].weights) == 0


def test_another_model_in_the_middle_of_a_run_stops_it_in_a_sentence(tmp_path, served):
    def exchange(trainer):
        trainer.train()
        served.stop()
        served.scorer = of_model(tiny.qwen(2, width=24))
        served.start()

    with pytest.raises(TeacherFailed, match=r"the teacher failed in step 1 .*a different model than") as raised:
        trained(tmp_path, served.url, "opd", prepare=exchange, max_steps=1)
    assert "nothing was learned from it" in str(raised.value)


def test_a_run_goes_on_with_its_own_teacher_alone(tmp_path, served):
    saved = {"save_strategy": "steps", "save_steps": 1}
    trained(tmp_path, served.url, "opd", max_steps=1, **saved)
    record = json.loads((tmp_path / "fingerprints.json").read_text())["teacher"]
    assert len(record) > 20 and all(isinstance(value, float) for value in record)
    resume = str(tmp_path / "checkpoint-1")
    assert trained(tmp_path, served.url, "opd", max_steps=2, resume=resume, **saved).state.global_step == 2
    served.scorer = of_model(tiny.qwen(2, width=24))
    with pytest.raises(ValueError, match="the teacher is not what the run began with"):
        trained(tmp_path, served.url, "opd", max_steps=3, resume=resume, **saved)


def test_records_name_the_model_and_never_the_key(tmp_path, served, monkeypatch):
    monkeypatch.setenv("TROPD_TEACHER_API_KEY", "sk-secret-123")
    served.key = "sk-secret-123"
    trainer = trained(tmp_path, served.url, "opd", max_steps=1, save_strategy="steps", save_steps=1)
    write_card(trainer)
    assert "distilled from some/teacher" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "run.json").read_text())["teacher"] == "some/teacher"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8 and not any(b"secret" in path.read_bytes() for path in files)


def test_it_writes_prefixes_with_seeds_that_a_resumed_run_has_too(tmp_path, served):
    served.writer = lambda body: tiny.ids("ab;cd ef;")[: body["max_tokens"]]
    rows = [{"prompt": row["prompt"]} for row in ROWS]
    seeds = []
    for name in ("one", "two"):
        served.asked.clear()
        trained(tmp_path / name, served.url, max_steps=2, rows=rows)
        seeds.append([body["seed"] for body in served.asked if "seed" in body])
    assert sorted(seeds[0]) == sorted(seeds[1]) and len(set(seeds[0])) == len(seeds[0]) > 2


def test_several_teachers_may_be_here_and_there(tmp_path, served):
    rows = [row | {"teacher": "math" if n % 2 else "code"} for n, row in enumerate(ROWS)]
    here = {"math": clone(tiny.llama(2)), "code": clone(tiny.qwen(1, width=24))}
    there = {"math": clone(tiny.llama(2)), "code": [served.url]}
    ours = trained(tmp_path / "here", here, max_steps=2, rows=rows)
    theirs = trained(tmp_path / "there", there, max_steps=2, rows=rows)
    assert logged(theirs) == pytest.approx(logged(ours), abs=1e-5)
    assert regions(tmp_path / "there") == regions(tmp_path / "here")


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("gkd", {}, "method 'gkd' needs whole distributions"),
        ("vopd", {}, "or set baseline: top_k"),
        ("tropd_support", {"support": "union"}, "or set support: teacher"),
        ("eopd", {}, "method 'eopd' needs the teacher's entropy"),
        ("opd", {"temperature": 0.7}, "temperature is 0.7"),
        ("opd", {"teacher_model_init_kwargs": {"dtype": "float32"}}, "teacher_model_init_kwargs is set"),
        ("opd", {"teacher_chat_template": "teacher"}, "teacher_tokenizer"),
        ("opd", {"teacher_concurrency": 0}, "teacher_concurrency is 0"),
    ],
)
def test_what_a_server_cannot_do_is_refused_by_its_field(tmp_path, served, method, settings, words):
    with pytest.raises(ValueError, match=words):
        build(tmp_path, tiny.llama(0), served.url, method, rows=ROWS, **settings)


def test_fields_without_effect_are_said(tmp_path, served, caplog):
    build(tmp_path, tiny.llama(0), served.url, "opd", rows=ROWS, teacher_batch_size=2, teacher_timeout=9.0)
    build(tmp_path, tiny.llama(0), clone(tiny.llama(1)), "opd", rows=ROWS, teacher_batch_size=2, teacher_timeout=9.0)
    said = [record.message for record in caplog.records if "no effect" in record.message]
    assert said == [
        "teacher_batch_size: no effect, since the teacher is behind a server.",
        "teacher_timeout: no effect, since no teacher is behind a server.",
    ]


def test_a_server_that_lists_too_few_log_probabilities_is_refused_before_a_step(tmp_path, served):
    served.most_topk = 20
    words = r"fkl_top_k is 64, but the teacher's server lists at most 20 .*--max-logprobs 64, or set fkl_top_k: 20"
    with pytest.raises(ValueError, match=words):
        build(tmp_path, tiny.llama(0), served.url, "tropd", rows=ROWS)
    assert build(tmp_path, tiny.llama(0), served.url, "opd", rows=ROWS).teachers.most_topk == 20


def test_a_teachers_name_and_tokenizer_may_be_its_own(tmp_path, served):
    teachers = {"math": served.url, "code": served.url}
    rows = [row | {"teacher": "math"} for row in ROWS]
    settings = {"teacher_model_name": {"math": "teacher", "code": "other"}}
    with pytest.raises(ValueError, match="teacher_model_name is 'other', but"):
        build(tmp_path, tiny.llama(0), teachers, "opd", rows=rows, **settings)
    trainer = build(tmp_path, tiny.llama(0), teachers, "opd", rows=rows, teacher_model_name="teacher")
    one, other = trainer.teachers.by_name.values()
    assert one is other and torch.isfinite(torch.tensor(one.fingerprint())).all()
