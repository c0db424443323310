"""Workers of several ranks, through torchrun over gloo on the CPU."""

import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

TORCHRUN = "torch.distributed.run"
GLOO_ABORTED = re.compile(r"terminate called after throwing an instance of 'gloo::\w+'\n *(.*gloo/transport/.*)")
"""gloo's transport ends a process from a thread of its own, where nobody can catch it, at a refused connection."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(ranks: int, *arguments: object, timeout: int = 240, cwd: Path | None = None):
    """The ended process: of torchrun, or of the worker itself where there is one rank."""
    launch = ["-m", TORCHRUN, "--nproc_per_node", ranks, "--master_port", free_port()] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *map(str, [*launch, *arguments])],
        check=False,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def written_by(ranks: int, worker: Path, out: Path, *arguments: object, timeout: int = 240) -> Path:
    """Run `worker OUT ARGUMENTS` to its end, and return the folder that it wrote to.

    Where gloo's transport itself aborted a rank, which says nothing of the worker, once more in a folder beside it.
    """
    out.mkdir()
    done = run_ranks(ranks, worker, out, *arguments, timeout=timeout)
    if done.returncode and (aborted := GLOO_ABORTED.search(done.stderr)):
        warnings.warn(f"{out.name}, run again: {aborted[1]}", stacklevel=2)
        out = out.with_name(f"{out.name}-again")
        out.mkdir()
        done = run_ranks(ranks, worker, out, *arguments, timeout=timeout)
    if done.returncode:
        pytest.fail(f"{worker.name} on {ranks} ranks ended with {done.returncode}:\n{words_of(done.stderr)}", False)
    return out


def words_of(stderr: str) -> str:
    """What the workers said last, without torchrun's own report behind it."""
    said = re.split(r"^[EW]\d{4} .*torch/distributed/elastic", stderr, maxsplit=1, flags=re.MULTILINE)[0]
    codes = " ".join(re.findall(r"exitcode +: (-?\d+)", stderr))
    return f"{said[-3000:]}\nexit codes of the ranks: {codes}"
