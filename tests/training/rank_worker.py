"""One step of every given method on this rank's share of eight recorded rollouts; rank 0 writes what it saw.

Run by `test_ranks.py`, alone or through `torch.distributed.run`.
"""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import tiny

ROWS = [{"prompt": prompt, "teacher_response": "xyz+"} for prompt in tiny.PROMPTS]


def main(out: Path, methods: list[str]) -> None:
    """Gradients and metrics of one step a method."""
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    share = 8 // world
    seen = {}
    for method in methods:
        recorder = tiny.Recorder()
        trainer = tiny.build(
            out / method,
            tiny.llama(seed=1),
            tiny.llama(seed=2),
            method,
            script=tiny.replay(tiny.recorded(8)[rank * share :][:share]),
            rows=ROWS,
            callbacks=[recorder],
            per_device_train_batch_size=share,
        )
        trainer.train()
        (logs,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        gradients = {name.removeprefix("module."): value for name, value in recorder.steps[0].gradients.items()}
        seen[method] = {"gradients": gradients, "logs": logs}
    if rank == 0:
        torch.save(seen, out / "seen.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads abort one interpreter's end in three, after everything is written
