"""Data order is a function of the seed and the epoch, so a run resumed in a later epoch goes on where it was."""

import pytest
from trl.trainer.utils import RepeatSampler

from training import tiny
from training.tiny import build, clone
from tropd.training.checkpointing.epoch_sampler import EpochAddressedSampler


def order(epoch: int, seed: int = 3) -> list[int]:
    host = RepeatSampler(list(range(12)), mini_repeat_count=2, batch_size=3, seed=seed)
    return list(EpochAddressedSampler(host, epoch=lambda: epoch))


def test_an_epoch_has_one_order_whenever_it_is_asked_for():
    assert order(1) == order(1) != order(0)
    assert sorted(order(1)) == sorted(order(0))
    assert order(0) == list(RepeatSampler(list(range(12)), mini_repeat_count=2, batch_size=3, seed=3))


@pytest.mark.parametrize("checkpoint", [4, 6, 8])
def test_a_run_resumed_in_a_later_epoch_is_the_uninterrupted_run(tmp_path, student, teacher, checkpoint):
    """Four steps are one epoch: the checkpoints stand at a boundary, inside the second epoch, and at its end."""
    settings = {
        "rows": [{"prompt": f"{first}+{second}="} for first in "abcd" for second in "ef"],
        "max_steps": 10,
        "shuffle_dataset": True,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = build(tmp_path / "whole", clone(student), clone(teacher), "opd", **settings)
    whole.train()
    resumed = build(tmp_path / "resumed", clone(student), clone(teacher), "opd", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{checkpoint}"))
    assert tiny.largest_difference(tiny.weights_of(resumed.model), tiny.weights_of(whole.model)) == 0
