"""Disk: what a checkpoint holds, how many there are, and the sentence where it is too much."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from shipped import student_path, teacher_path
from tropd.planning import check_disk, model_shape
from tropd.planning.disk import SMALL_FILES_BYTES, estimate_disk
from tropd.planning.setup import read_setup

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def estimate(config):
    student, teacher = model_shape(student_path()), model_shape(teacher_path())

    def make(lora_parameters=None, max_steps=100, **changes):
        args = config(**changes)
        setup = read_setup(args, student, teacher, prompt_tokens=8.0, lora_parameters=lora_parameters)
        return estimate_disk(args, setup, max_steps)

    return make


def test_a_checkpoint_holds_weights_and_two_moments(estimate):
    weights = 664_416 * 4
    assert estimate().checkpoint == 3 * weights + SMALL_FILES_BYTES
    assert estimate(save_only_model=True).checkpoint == weights + SMALL_FILES_BYTES
    assert estimate().final_model == weights + SMALL_FILES_BYTES
    assert estimate(save_final_model=False).final_model == 0
    assert estimate(lora_parameters=1000).checkpoint == 3 * 4000 + SMALL_FILES_BYTES


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"save_steps": 30}, 4),  # 30, 60, 90 and the last step
        ({"save_steps": 50}, 2),
        ({"save_steps": 0.25}, 4),
        ({"save_steps": 10, "save_total_limit": 3}, 4),  # the oldest goes when the newest is written
        ({"save_steps": 50, "save_total_limit": 5}, 2),
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "epoch", "num_train_epochs": 3}, 3),
    ],
)
def test_checkpoints_are_counted(estimate, changes, count):
    found = estimate(**changes)
    assert found.num_checkpoints == count
    assert found.total == count * found.checkpoint + found.final_model + found.logs


def test_logged_rollouts_count(estimate):
    assert estimate(rollout_log_steps=0).logs == 0
    assert estimate(rollout_log_steps=1).logs == 10 * estimate(rollout_log_steps=10).logs > 0


def test_a_sharded_optimiser_is_saved_whole(config):
    shape = replace(model_shape(student_path()), parameters=1000)
    args = config()
    alone, shared = (read_setup(args, shape, shape, prompt_tokens=8.0, num_processes=n, sharded=n > 1) for n in (1, 4))
    assert estimate_disk(args, alone, 10).checkpoint == estimate_disk(args, shared, 10).checkpoint


def test_too_little_room_is_refused_with_what_to_type(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(10**12, 0, 3 * 10**9))
    output = tmp_path / "not" / "there" / "yet"
    check_disk(output, 3 * 10**9)
    with pytest.raises(ValueError, match="save_total_limit=1") as error:
        check_disk(output, 40 * 10**9)
    for piece in (str(output), "3.0 GB", "40.0 GB", "save_only_model=True", "another output_dir"):
        assert piece in str(error.value)
    assert set(asked) == {tmp_path}, "the nearest folder that exists is asked"


def test_a_relative_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_disk(Path("output/run"), 1)


def test_a_real_run_leaves_what_was_predicted(config):
    from datasets import Dataset

    from tropd import TrOPDTrainer

    args = config(
        method="opd",
        max_steps=1,
        per_device_train_batch_size=4,
        max_completion_length=24,
        rollout_log_steps=1,
        logging_steps=1,
        disable_tqdm=True,
    )
    prompts = Dataset.from_list([{"prompt": "12+345+678="}] * 4)
    TrOPDTrainer(str(student_path()), str(teacher_path()), args=args, train_dataset=prompts).train()
    output = Path(args.output_dir)
    setup = read_setup(args, model_shape(student_path()), model_shape(teacher_path()), prompt_tokens=11.0)
    expected = estimate_disk(args, setup, max_steps=1)
    checkpoints = list(output.glob("checkpoint-*"))
    assert len(checkpoints) == expected.num_checkpoints
    weights_and_state = sum((checkpoints[0] / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert weights_and_state == pytest.approx(expected.checkpoint - SMALL_FILES_BYTES, rel=0.02)
    others = _size(checkpoints[0]) - weights_and_state
    assert others < SMALL_FILES_BYTES
    assert 0.3 < _size(output / "rollouts") / expected.logs < 2


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
