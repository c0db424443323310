"""Guidance over turns in an environment is one run however it is cut: resumed, in micro-batches, on several ranks."""

from pathlib import Path

import pytest
import torch

from torchrun import written_by
from training import guided_agent_ranks
from training.guided_agent_ranks import LONG, ROWS, SGD, build, seen
from training.test_resume import StopAfter

LOGGED = ("loss", "guidance/turns", "guidance/stale_share", "agent/turns", "agent/trust_last_turn", "reward")


@pytest.fixture(autouse=True)
def half(monkeypatch):
    """One thread, as a rank has; and the module's own schedule is put back."""
    monkeypatch.setattr(guided_agent_ranks.step, "guidance_fraction", None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ran(trainer):
    trainer.train()
    return seen(trainer)


def assert_same_run(ours, theirs, atol):
    assert ours["written"] == theirs["written"]
    for name, value in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value, rtol=0, atol=atol, msg=name)
    for mine, other in zip(ours["log"], theirs["log"], strict=True):
        for name in (
            "loss",
            "guidance/turns",
            "guidance/stale_share",
            "agent/turns",
            "agent/trust_last_turn",
            "reward",
        ):
            assert (name in mine) == (name in other), name
            assert mine.get(name, 0) == pytest.approx(other.get(name, 0), rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(("pattern", "are_recorded"), [("prefix", True), ("mixed", False), ("trust", False)])
def test_a_resumed_run_is_the_whole_one_bit_for_bit(tmp_path, pattern, are_recorded):
    saves = {"save_strategy": "steps", "save_steps": 1}
    whole = ran(build(tmp_path / "whole", pattern, are_recorded))
    cut = build(tmp_path / "cut", pattern, are_recorded, **saves)
    cut.add_callback(StopAfter(1))
    cut.train()
    again = build(tmp_path / "cut", pattern, are_recorded, **saves)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-1"))
    found = seen(again)
    assert_same_run(found, whole, atol=0)
    assert any(any(marks) for _, _, marks in whole["written"]), "the teacher took part"
    assert all(not all(marks) for _, _, marks in whole["written"])
    if are_recorded:
        assert whole["log"][-1]["guidance/stale_share"] == 0


@pytest.mark.parametrize("pattern", ["prefix", "mixed", "trust"])
def test_micro_batches_are_one_batch(tmp_path, pattern):
    """Eight rollouts of one prompt: the teacher's turns are the same in both halves."""
    one = ran(build(tmp_path / "one", pattern, num_generations=ROWS, **SGD))
    assert any(any(marks) for _, _, marks in one["written"]), "the teacher took part"
    halves = {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2, "num_generations": ROWS}
    assert_same_run(ran(build(tmp_path / "two", pattern, **halves, **SGD)), one, atol=3e-5)


def test_two_ranks_are_one(tmp_path):
    """Eight rollouts of one prompt, four on each rank: both begin with the same turns of the teacher."""
    one = ran(build(tmp_path / "one", "prefix", num_generations=ROWS, max_completion_length=LONG, **SGD))
    assert_same_run(two_ranks(tmp_path / "two", "prefix", "plain", "written"), one, atol=3e-5)


def two_ranks(out, *words):
    out = written_by(2, Path(guided_agent_ranks.__file__), out, *words, timeout=240)
    return torch.load(out / "seen.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pattern", "episodes"),
    [("fsdp2", "prefix", "recorded"), ("fsdp2", "mixed", "written"), ("zero3", "prefix", "recorded")],
)
def test_two_ranks_that_shard_the_weights_are_one(tmp_path, kind, pattern, episodes):
    """A sharded teacher's recorded turns, or those that a whole one writes; the student's turns need both ranks."""
    if kind == "zero3":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install deepspeed)")
    settings = {"num_generations": ROWS, "max_completion_length": LONG, **SGD}
    one = ran(build(tmp_path / "one", pattern, episodes == "recorded", **settings))
    two = two_ranks(tmp_path / "two", pattern, kind, episodes)
    assert_same_run(two, one, atol=3e-5)
    assert any(any(marks) for _, _, marks in two["written"]), "the teacher took part"
    assert two["idle turns"] > 0, "a rank took part in a turn that it had no row for"
