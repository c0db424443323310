"""Looking at a pair when its models are as training will have them."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from ..preflight.probe import is_sharded


class AtStart(TrainerCallback):
    """Calls `look` on every process when training begins."""

    def __init__(self, look: Callable[[], None]):
        self.look = look

    def on_train_begin(self, args, state, control, **kwargs):
        self.look()


def look_when_ready(trainer: Any, look: Callable[[], None]) -> None:
    """Call `look` now, or when training begins where the student is sharded only then."""
    if is_sharded(trainer):
        trainer.add_callback(AtStart(look))
    else:
        look()
