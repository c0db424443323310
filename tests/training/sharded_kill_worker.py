"""A training that FSDP2 shards over gloo, of which a process kills itself at a place inside a checkpoint's write.

    python sharded_kill_worker.py OUT STATE_DICT_TYPE CHECKPOINT PLACE RANK STEP

Run by `test_sharded_kill.py` through `torch.distributed.run`. CHECKPOINT is the number of the one to go on from, 0 for
none; PLACE is one of `PLACES`, or `nowhere`.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.rank_worker import ADAM, Scenario, built, shard_on_cpu
from tropd.training.checkpointing import checkpoints, saving

STEPS = 5
SETTINGS = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_final_model": True, **ADAM}


Die = Callable[[], None]


def around(owner: Any, name: str, die: Die, first: bool = True) -> None:
    """Have a process die right before, or right after, `owner.name` has done its work."""
    method = getattr(owner, name)

    def asked(*arguments: Any, **options: Any) -> Any:
        if first:
            die()
        result = method(*arguments, **options)
        die()
        return result

    setattr(owner, name, asked)


PLACES: dict[str, Callable[[Any, Die], None]] = {
    "the model is written, optimiser and random states are not": lambda trainer, die: around(
        trainer, "_save_optimizer_and_scheduler", die
    ),
    "its random state is not written": lambda trainer, die: around(trainer, "_save_rng_state", die),
    "all of its own is written": lambda trainer, die: around(trainer, "_save_rng_state", die, first=False),
    "every file is written, and not described": lambda trainer, die: around(checkpoints, "write_manifest", die),
    "it is described, and has not its name": lambda trainer, die: around(
        checkpoints, "write_manifest", die, first=False
    ),
    "it has its name": lambda trainer, die: around(saving, "publish", die, first=False),
}
"""Where a process dies, and how that comes about."""


def main(out: Path, state_dict_type: str, checkpoint: int, place: str, rank: int, step: int) -> None:
    torch.set_num_threads(1)
    shard_on_cpu("fsdp2")
    os.environ["FSDP_STATE_DICT_TYPE"] = state_dict_type
    trainer = built(out, Scenario(settings=SETTINGS), 1)

    def die() -> None:
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    if place != "nowhere" and int(os.environ["RANK"]) == rank:
        PLACES[place](trainer, die)
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{checkpoint}") if checkpoint else None)


if __name__ == "__main__":
    out, state_dict_type, checkpoint, place, rank, step = sys.argv[1:]
    main(Path(out), state_dict_type, int(checkpoint), place, int(rank), int(step))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort one interpreter's end in three, after everything is written
