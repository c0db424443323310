"""Run a small training again and again, killing it with SIGKILL at chosen moments, until it has finished.

    python kill_worker.py FOLDER SEED

Heavy imports happen once; each attempt is a fork. Prints, as JSON, what each kill met.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from tropd.cli.main import main
from tropd.training import trainer  # noqa: F401  (imported before the forks)
from tropd.training.checkpointing.checkpoints import ASIDE, checkpoints_in

KILLS = 20
IN_WRITES = 10
"""So many of the kills wait for a checkpoint that is being written."""


def attempt(folder: Path, fields: list[str], resume: bool) -> int:
    """Fork a training; the child's process id."""
    child = os.fork()
    if child:
        return child
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(main(["train", *fields, *(["--resume_from_checkpoint", "latest"] if resume else [])]))


def kill(child: int, out: Path, in_write: bool, generator: random.Random) -> dict:
    """Kill at the wanted moment, or find that the child has ended; what was there."""
    before = len(checkpoints_in(out))
    deadline = time.monotonic() + (60 if in_write else generator.uniform(0.05, 1.5))
    while time.monotonic() < deadline:
        if in_write and list((out / ASIDE).glob("checkpoint-*/*")):
            time.sleep(generator.uniform(0.0, 0.006))
            break
        if os.waitpid(child, os.WNOHANG)[0]:
            return {"ended": True}
        time.sleep(0.0002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = sorted(path.name for path in (out / ASIDE).glob("checkpoint-*/*"))
    return {"ended": False, "in_write": bool(left), "left": left, "new": len(checkpoints_in(out)) - before}


def run(folder: Path, seed: int) -> list[dict]:
    torch.set_num_threads(1)
    fields = json.loads((folder / "fields.json").read_text())
    out, generator, met = folder / "out", random.Random(seed), []
    while True:
        in_write = len(met) % 2 == 0 and sum(one["in_write"] for one in met) < IN_WRITES
        enough = len(met) >= KILLS
        child = attempt(folder, fields, resume=bool(checkpoints_in(out)))
        if enough:
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, (folder / "log.txt").read_text()[-2000:]
            return met
        outcome = kill(child, out, in_write, generator)
        if outcome.pop("ended"):
            raise SystemExit(f"the run ended after {len(met)} kills; make it longer")
        met.append(outcome)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    print(json.dumps(run(Path(), int(sys.argv[2]))))
