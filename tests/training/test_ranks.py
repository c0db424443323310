"""Two ranks of four rollouts take the step that one process takes with eight (METHOD 1.5), over gloo on the CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("rank_worker.py")
METHODS = ("opd", "tropd", "entropy_opd", "eopd", "gkd")
ROUNDING = 1e-5
"""The order of sums differs; gradients are of order 1."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def seen_by(out: Path, ranks: int) -> dict:
    """What rank 0 saw of each method's step."""
    out.mkdir()
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(free_port())]
    command = [sys.executable, *(launch if ranks > 1 else []), str(WORKER), str(out), *METHODS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "seen.pt", weights_only=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    return seen_by(root / "one", 1), seen_by(root / "two", 2)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_of_four_take_the_step_of_eight(both, method):
    one, two = (seen[method]["gradients"] for seen in both)
    assert one.keys() == two.keys()
    assert max(float(value.abs().max()) for value in one.values()) > 1e-2
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=0, atol=ROUNDING, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_log_the_metrics_of_one(both, method):
    one, two = (seen[method]["logs"] for seen in both)
    ours = [name for name in one if "/" in name and not name.startswith("speed/")]
    assert len(ours) > 15
    assert {name: two[name] for name in ours} == pytest.approx({name: one[name] for name in ours}, abs=1e-4)
