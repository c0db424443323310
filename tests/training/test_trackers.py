"""Trackers: each has the curves and the rollouts, and none is spoken to before it has begun."""

import types

import pytest

from training.tiny import build, clone, recorded, replay, same_dataset
from tropd.preflight.probe import probe
from tropd.training.logging.trackers import COLUMNS, as_markdown, row_of

RECORD = {
    "step": 3,
    "row": 1,
    "prompt": "a | b\n<i>",
    "response": "xy",
    "ended_by": None,
    "tokens": [
        {"text": "x", "region": "trust", "log_ratio": 0.5},
        {"text": "y", "region": "outlier", "log_ratio": -3.25},
    ],
}


def test_a_rollout_is_a_row_with_its_regions():
    assert row_of(RECORD) == [3, 1, "a | b\n<i>", "x⟦y −3.2⟧", 2, 1, -3.25, False]
    left_out = RECORD | {"tokens": []}
    assert row_of(left_out)[3:] == ["~xy~", 0, 0, None, False]


def test_a_table_of_markdown_shows_text_as_it_is():
    line = as_markdown([row_of(RECORD)]).splitlines()[-1]
    assert line.count("|") == len(COLUMNS) + 1 and "a &#124; b↵ &lt;i&gt;" in line


def trained(folder, student, teacher, **settings):
    """A run with a look before it, and evaluations before, within and after it."""
    options = {"trainer_options": {"eval_dataset": same_dataset()}, "per_device_eval_batch_size": 8}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "rollout_log_steps": 1}
    script = replay(*[recorded(8)] * 6)
    trainer = build(folder, clone(student), clone(teacher), "tropd", script=script, **options, **settings)
    probe(trainer, [{"prompt": "ab="}] * 2)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    return trainer


def test_trackio_has_curves_and_rollouts(tmp_path, student, teacher, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    logged, log = [], trackio.log
    monkeypatch.setattr(trackio, "log", lambda metrics, **more: (logged.append(metrics), log(metrics, **more)))
    trained(tmp_path / "run", student, teacher, report_to=["trackio"], project="test")
    assert any("train/kl/k1" in entry for entry in logged) and any("eval/kl/k1" in entry for entry in logged)
    tables = [entry for entry in logged if "rollouts" in entry]
    assert [entry["train/global_step"] for entry in tables] == [0, 1]


def test_wandb_has_curves_and_rollouts(tmp_path, student, teacher, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(tmp_path / "run", student, teacher, report_to=["wandb"])
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert "train/kl/k1" in summary and "eval/kl/k1" in summary
    assert summary["rollouts"]["_type"] == "table-file" and summary["rollouts"]["ncols"] == len(COLUMNS)


def test_tensorboard_has_curves_and_rollouts(tmp_path, student, teacher, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(
        "TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs")
    )  # an evaluation before training knows no other
    trainer = trained(tmp_path / "run", student, teacher, report_to=["tensorboard"])
    logs = [EventAccumulator(str(file)).Reload() for file in (tmp_path / "logs").rglob("events.out.*")]
    assert {"train/kl/k1", "eval/kl/k1"} <= {name for log in logs for name in log.Tags()["scalars"]}
    (log,) = [log for log in logs if "rollouts/text_summary" in log.Tags()["tensors"]]
    assert [event.step for event in log.Tensors("rollouts/text_summary")] == [0, 1]
    assert trainer.args.report_to == ["tensorboard"]


def test_nothing_speaks_to_a_tracker_before_it_has_begun(tmp_path, student, teacher, monkeypatch):
    """trackio refuses then, and TRL times every rollout, those of the look before a run as well."""
    import trl.extras.profiling as profiling

    asked = []
    fake = types.SimpleNamespace(log=lambda metrics, step=None: asked.append(step))
    monkeypatch.setattr(profiling, "trackio", fake, raising=False)
    monkeypatch.setattr(profiling, "is_trackio_available", lambda: True)
    trainer = build(
        tmp_path, clone(student), clone(teacher), "opd", trainer_options={"eval_dataset": same_dataset()},
        per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.args.report_to = ["trackio"]  # without the host's callback, which wants the package
    probe(trainer, [{"prompt": "ab="}] * 2)
    trainer.evaluate()
    assert asked == [] and trainer.args.report_to == ["trackio"]
