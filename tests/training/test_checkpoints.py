"""Checkpoints are there whole or not at all; one that was cut short or altered is recognised and another offered."""

import errno
import hashlib
import json
import os

import pytest
import torch

from training import tiny
from training.tiny import Recorder, build, clone
from tropd.training.checkpointing import checkpoints
from tropd.training.checkpointing.checkpoints import (
    ASIDE,
    MANIFEST,
    CheckpointNotWritten,
    check_checkpoint,
    checkpoints_in,
    fault_of,
)
from tropd.training.guards.faults import checkpoint_phrase

SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def pair():
    return tiny.llama(1), tiny.llama(2)


def trained(directory, pair, **settings):
    """A trainer after its run; every attempt starts from fresh copies."""
    resume = settings.pop("resume", None)
    recorder = Recorder()
    trainer = build(directory, clone(pair[0]), clone(pair[1]), "opd", callbacks=[recorder], **(SAVING | settings))
    trainer.train(resume_from_checkpoint=resume)
    return trainer, recorder


def names(directory):
    return [path.name for path in checkpoints_in(directory)]


def test_a_checkpoint_describes_every_file_of_its_own(tmp_path, pair):
    trained(tmp_path, pair, max_steps=2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"] and not (tmp_path / ASIDE).exists()
    described = json.loads((tmp_path / "checkpoint-2" / MANIFEST).read_text())["files"]
    files = {path.name for path in (tmp_path / "checkpoint-2").iterdir()} - {MANIFEST}
    assert set(described) == files and {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= files
    sizes = {name: {"bytes": (tmp_path / "checkpoint-2" / name).stat().st_size} for name in files}
    assert described == sizes and fault_of(tmp_path / "checkpoint-2") is None


def test_digests_are_written_where_they_are_asked_for(tmp_path, pair):
    trained(tmp_path, pair, max_steps=1, checkpoint_digests=True)
    described = json.loads((tmp_path / "checkpoint-1" / MANIFEST).read_text())["files"]
    for name, found in described.items():
        content = (tmp_path / "checkpoint-1" / name).read_bytes()
        assert found == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert fault_of(tmp_path / "checkpoint-1") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "file", "fault"),
    [
        (cut, "model.safetensors", "model.safetensors has .* bytes instead of"),
        (alter, "optimizer.pt", "optimizer.pt was altered after it was written"),
        (os.remove, "rng_state.pth", "rng_state.pth is missing"),
        (os.remove, "trainer_state.json", "it has no trainer_state.json"),
        (cut, MANIFEST, "checkpoint.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(tmp_path, pair, damage, file, fault):
    trained(tmp_path, pair, max_steps=2, checkpoint_digests=damage is alter)
    damage(tmp_path / "checkpoint-2" / file)
    with pytest.raises(
        ValueError, match=rf"checkpoint-2 is not complete: {fault}.*resume_from_checkpoint=.*checkpoint-1"
    ):
        trained(tmp_path, pair, max_steps=3, resume=str(tmp_path / "checkpoint-2"))
    damage(tmp_path / "checkpoint-1" / file)
    with pytest.raises(ValueError, match="There is no earlier one"):
        check_checkpoint(tmp_path / "checkpoint-2")


def test_without_digests_no_file_is_read_and_one_that_was_altered_passes(tmp_path, pair, monkeypatch):
    monkeypatch.delattr(checkpoints, "_digest")
    trained(tmp_path, pair, max_steps=1)
    alter(tmp_path / "checkpoint-1" / "optimizer.pt")
    check_checkpoint(tmp_path / "checkpoint-1")
    cut(tmp_path / "checkpoint-1" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"checkpoint-1 is not complete: optimizer.pt has .* bytes instead of"):
        check_checkpoint(tmp_path / "checkpoint-1")


def test_a_sentence_names_a_checkpoint_by_the_sizes_of_its_files_without_reading_them(tmp_path, pair, monkeypatch):
    trained(tmp_path, pair, max_steps=3, checkpoint_digests=True)
    alter(tmp_path / "checkpoint-3" / "optimizer.pt")
    with monkeypatch.context() as patched:
        patched.delattr(checkpoints, "_digest")
        assert checkpoint_phrase(str(tmp_path)) == f"the last checkpoint, {tmp_path}/checkpoint-3, is untouched"
        cut(tmp_path / "checkpoint-3" / "optimizer.pt")
        assert checkpoint_phrase(str(tmp_path)) == f"the last checkpoint, {tmp_path}/checkpoint-2, is untouched"
    alter(tmp_path / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(
        ValueError, match=r"checkpoint-2 is not complete: optimizer.pt was altered"
    ):  # resuming reads them
        check_checkpoint(tmp_path / "checkpoint-2")


def test_to_go_on_where_there_is_no_checkpoint_is_refused(tmp_path, pair):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"resume_from_checkpoint is True, but there is no .*out'\. Remove it"):
        trained(tmp_path / "out", pair, max_steps=2, resume=True)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    trained(tmp_path / "out", pair, max_steps=2)
    assert trained(tmp_path / "out", pair, max_steps=3, resume=True)[0].checkpointing.resumed_from.endswith(
        "checkpoint-2"
    )


def test_another_programs_checkpoint_is_taken_with_a_warning(tmp_path, pair, caplog):
    trained(tmp_path, pair, max_steps=1)
    (tmp_path / "checkpoint-1" / MANIFEST).unlink()
    assert fault_of(tmp_path / "checkpoint-1") is None
    assert "it cannot be checked for completeness" in caplog.text


def test_only_the_latest_checkpoints_are_kept(tmp_path, pair):
    trained(tmp_path, pair, max_steps=5, save_total_limit=2)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5"] and not (tmp_path / ASIDE).exists()


def test_the_best_checkpoint_is_kept_too(tmp_path, pair):
    trainer, _ = trained(
        tmp_path,
        pair,
        max_steps=4,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_kl/k1",
        greater_is_better=True,
        trainer_options={"eval_dataset": tiny.same_dataset()},
        learning_rate=1e-2,
    )
    best = trainer.state.best_model_checkpoint
    assert best is not None and os.path.isdir(best) and fault_of(best) is None
    assert len(names(tmp_path)) <= 3


def test_a_crash_in_the_middle_of_a_write_leaves_the_earlier_checkpoints(tmp_path, pair, monkeypatch):
    write, calls = checkpoints.write_manifest, []

    def crash(folder, **options):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(folder, **options)

    monkeypatch.setattr(checkpoints, "write_manifest", crash)
    with pytest.raises(OSError, match="Input/output error"):
        trained(tmp_path, pair, max_steps=3)
    assert names(tmp_path) == ["checkpoint-1"] and fault_of(tmp_path / "checkpoint-1") is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_sentence_and_the_last_checkpoint_stays(tmp_path, pair, monkeypatch, number):
    saving, calls = torch.save, []

    def full(what, path, *arguments, **options):
        if str(path).endswith("optimizer.pt"):
            calls.append(path)
            if len(calls) == 2:
                raise OSError(number, os.strerror(number))
        saving(what, path, *arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        CheckpointNotWritten, match=r"not enough space for a checkpoint in .*earlier checkpoints are untouched\. Fr"
    ):
        trained(tmp_path, pair, max_steps=3)
    assert names(tmp_path) == ["checkpoint-1"] and not (tmp_path / ASIDE).exists()


def test_what_a_crash_left_half_written_is_removed_when_a_run_begins(tmp_path, pair):
    left = tmp_path / ASIDE / "checkpoint-7"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    trained(tmp_path, pair, max_steps=1)
    assert not (tmp_path / ASIDE).exists() and names(tmp_path) == ["checkpoint-1"]


def test_a_checkpoint_inside_a_generation_cycle_waits_for_its_end(tmp_path, pair):
    trained(tmp_path, pair, max_steps=6, steps_per_generation=2, num_iterations=2, per_device_train_batch_size=4)
    # A cycle is four optimiser steps; the last step of a run is saved wherever it lies.
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_the_collapse_guard_remembers_across_a_resumption(tmp_path, pair):
    trainer, _ = trained(tmp_path, pair, max_steps=2, collapse_patience=None)
    trainer.guard.steps_in_a_row, trainer.guard.best_ended_share = 3, 0.75
    trainer._save_checkpoint(trainer.model, None)
    other = build(tmp_path, clone(pair[0]), clone(pair[1]), "opd", max_steps=2, **SAVING)
    other.checkpointing.resumed_from = str(tmp_path / "checkpoint-2")
    other._tr_loss, other._globalstep_last_logged = torch.tensor(0.0), 0
    other.checkpointing.restore_pending()
    assert (other.guard.steps_in_a_row, other.guard.best_ended_share) == (3, 0.75)
