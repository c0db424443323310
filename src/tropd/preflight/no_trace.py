"""Using a trainer before it trains and leaving it as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from ..training.guards.reading import same_random_states
from ..training.logging.trackers import without_trackers
from ..training.trainer import TrOPDTrainer

HOST_STATE = ("_metrics", "_logs", "_pending_extra_logs", "_pending_metrics")
"""What a rollout writes into TRL's trainer; a copy is written into and thrown away."""


@contextmanager
def without_a_trace(trainer: TrOPDTrainer) -> Iterator[None]:
    """Evaluation mode inside; everything that a rollout changes is put back afterwards, also after an error."""
    kept = {name: getattr(trainer, name) for name in HOST_STATE}
    modes = [(module, module.training) for module in trainer.model.modules()]
    for name, value in kept.items():
        setattr(trainer, name, copy.deepcopy(value))
    rows, trainer.rollout_stage.evaluated_rows = trainer.rollout_stage.evaluated_rows, 0
    trainer.in_preflight = True
    trainer.model.eval()
    try:
        with same_random_states(trainer.accelerator.device), without_trackers(trainer.args):
            yield
    finally:
        trainer.in_preflight = False
        trainer.rollout_stage.evaluated_rows = rows
        for module, training in modes:
            module.training = training
        for name, value in kept.items():
            setattr(trainer, name, value)
