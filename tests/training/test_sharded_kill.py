"""SIGKILL of one of two processes inside the write of an FSDP2 checkpoint: the run ends as if it had not been.

Each process kills itself at a place in the code, so nothing here depends on a clock.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from torchrun import run_ranks
from training.sharded_kill_worker import STEPS
from training.test_faults import metrics, steps_saved

WORKER = Path(__file__).with_name("sharded_kill_worker.py")

KILLS = [
    ("the model is written, optimiser and random states are not", 1, 2, [1]),
    ("its random state is not written", 0, 2, [1]),
    ("all of its own is written", 1, 3, [1, 2]),
    ("every file is written, and not described", 0, 3, [1, 2]),
    ("it is described, and has not its name", 0, 4, [1, 2, 3]),
    ("it has its name", 0, 4, [1, 2, 3, 4]),
]
"""Where which process dies in the write of which checkpoint, and those that are whole afterwards."""


def trained(out, kind, checkpoint=0, place="nowhere", rank=0, step=0):
    """Two processes that go on from a checkpoint, until one dies."""
    return run_ranks(2, WORKER, out, kind, checkpoint, place, rank, step)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("FULL_STATE_DICT", KILLS), ("SHARDED_STATE_DICT", KILLS[::2])])
def test_a_process_killed_inside_a_sharded_checkpoint_leaves_the_one_before(tmp_path, kind, kills):
    whole, out, saved = tmp_path / "whole", tmp_path / "out", []
    done = trained(whole, kind)
    assert done.returncode == 0, done.stderr[-3000:]
    for place, rank, step, left in kills:
        killed = trained(out, kind, max(saved, default=0), place, rank, step)
        saved = steps_saved(out)
        assert killed.returncode != 0 and "exitcode  : -9" in killed.stderr, killed.stderr[-3000:]
        assert saved == left, place
    done = trained(out, kind, saved[-1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert steps_saved(out) == list(range(1, STEPS + 1)) and not (out / ".writing").exists()
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(out) == metrics(whole)
