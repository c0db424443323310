"""Probe this rank's share of twelve recorded rollouts; every rank writes what it measured. Run by `test_probe.py`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import tiny
from tropd.preflight.measure import measure
from tropd.preflight.probe import probe

ROWS = [{"prompt": prompt} for prompt in tiny.PROMPTS[:3]]


def measured(out: Path, rank: int, world: int) -> dict[str, Any]:
    """The measurement of three prompts in four rollouts each, two prompts at a time, as this rank sees it."""
    recorded, share = tiny.recorded(12), 8 // world
    batches = [recorded[start : start + 8] for start in (0, 8)]
    mine = [batch[rank * len(batch) // world :][: len(batch) // world] for batch in batches]
    trainer = tiny.build(
        out,
        tiny.llama(seed=1),
        tiny.llama(seed=2),
        "opd",
        script=tiny.replay(*mine),
        per_device_train_batch_size=share,
    )
    return measure(probe(trainer, ROWS)).as_dict()


if __name__ == "__main__":
    number = int(os.environ["RANK"])
    folder = Path(sys.argv[1])
    found = measured(folder / f"run-{number}", number, int(os.environ["WORLD_SIZE"]))
    (folder / f"rank-{number}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads abort one interpreter's end in three, after everything is written
