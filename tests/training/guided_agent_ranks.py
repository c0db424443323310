"""Guided runs of the storeroom's pair, for `test_guided_agents.py`; as a script, on one of several ranks.

python guided_agent_ranks.py OUT PATTERN plain|fsdp2|zero3 recorded|written
"""

import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2]))  # for `tools`

from tools.proving_ground.expert import expert
from training.rank_worker import SHARDED, shard_on_cpu
from training.tiny import config, same_dataset, weights_of
from tropd import TrOPDTrainer
from tropd.proving_ground.storeroom import Storeroom, model_path, orders
from tropd.training import step

ROWS, LONG = 8, 160
SGD = {"optim": "sgd", "learning_rate": 0.05}
"""Adam's first steps make a rounded gradient of nearly 0 a whole step."""


def rows(are_recorded: bool) -> list[dict[str, Any]]:
    """Four orders; with an episode that guidance follows, or without, so that the teacher writes."""
    found = [order.row() for order in orders("train", 4, seed=5, levels=(1, 2))]
    if not are_recorded:
        return found
    episodes = [
        expert(order, random.Random(number)) for number, order in enumerate(orders("train", 4, seed=5, levels=(1, 2)))
    ]
    return [row | {"teacher_response": episode} for row, episode in zip(found, episodes, strict=True)]


def build(directory: Path, pattern: str, are_recorded: bool = False, **settings: Any) -> TrOPDTrainer:
    """Half of each episode is the teacher's, however long the run is; with `trust`, all that trust lacks."""
    step.guidance_fraction = lambda *_: 1.0 if pattern == "trust" else 0.5
    defaults = {
        "per_device_train_batch_size": ROWS,
        "num_generations": 4,
        "max_completion_length": 90,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "guidance_schedule": "constant",
        "guidance_beta": 0.1,
        "guidance_pattern": pattern,
        "guidance_length": "share" if are_recorded else "cap",
        "collapse_patience": None,
    }
    return TrOPDTrainer(
        str(model_path("student")),
        str(model_path("teacher")),
        args=config(directory, "tropd", **defaults | settings),
        train_dataset=same_dataset(rows(are_recorded)),
        environment_factory=Storeroom,
    )


def seen(trainer: TrOPDTrainer) -> dict[str, Any]:
    """What a run came to: the last step's rollouts by their numbers, the weights, and what was logged."""
    rollouts = [r for batch in trainer._buffered_inputs for r in batch.rollouts]
    written = sorted(gather_object([(r.row, r.response, list(r.by_teacher)) for r in rollouts]))
    weights = weights_of(trainer.accelerator.unwrap_model(trainer.model_wrapped))
    return {"written": written, "weights": weights, "log": [e for e in trainer.state.log_history if "loss" in e]}


def main(out: Path, pattern: str, kind: str, episodes: str) -> None:
    """A sharded teacher cannot write while the student trains, so that without episodes it is whole."""
    torch.set_num_threads(1)
    more = shard_on_cpu(kind) if kind in SHARDED else {}
    settings = {
        "per_device_train_batch_size": ROWS // int(os.environ["WORLD_SIZE"]),
        "num_generations": ROWS,
        "max_completion_length": LONG,
        "shard_teacher": episodes == "recorded",
        **SGD,
        **more,
    }
    trainer = build(out / "run", pattern, are_recorded=episodes == "recorded", **settings)
    together, idle = trainer.rollout_stage._ranks_in_step, []
    write_idly = together.write_idly
    together.write_idly = lambda write: idle.append(write_idly(write))
    trainer.train()
    found = seen(trainer) | {"idle turns": sum(gather_object([len(idle)]))}
    if os.environ["RANK"] == "0":
        torch.save(found, out / "seen.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort one interpreter's end in three, after everything is written
