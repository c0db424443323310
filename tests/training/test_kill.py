"""SIGKILL at twenty moments, many of them inside the write of a checkpoint: the run ends as if nothing had happened."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import shipped

WORKER = Path(__file__).with_name("kill_worker.py")
STEPS = 60


def fields(out: str) -> list[str]:
    settings = {
        "student": shipped.student_path(),
        "teacher": shipped.teacher_path(),
        "data": "prompts.jsonl",
        "output_dir": out,
        "method": "tropd",
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "max_completion_length": 24,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 3,
        "logging_steps": 3,
        "preflight_prompts": 0,
        "rollout_log_steps": 5,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_if_it_had_not_been(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rows = shipped.rows(40)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = subprocess.run(
        [sys.executable, "-m", "tropd", "train", *fields("whole")],
        check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "fields.json").write_text(json.dumps(fields("out")))
    killed = subprocess.run(
        [sys.executable, WORKER, tmp_path, "0"],
        check=False, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert killed.returncode == 0, killed.stderr
    met = json.loads(killed.stdout)
    assert len(met) == 20 and sum(kill["in_write"] for kill in met) >= 5, met
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole")
    assert rollout_files(tmp_path / "out") == rollout_files(tmp_path / "whole")
    shutil.rmtree(tmp_path)


def metrics(run: Path) -> list[dict]:
    """Every record but its clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("speed/", "train_", "step_time")
    return [{key: value for key, value in record.items() if not key.startswith(timed)} for record in records]


def rollout_files(run: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((run / "rollouts").glob("*.jsonl"))}
