"""The host's tool loop, as we need it: ranks in step.

TRL runs the tools; all that it reports are the messages that it appends to each row's completion.
"""

from collections.abc import Callable
from typing import Any

import torch

from .sharding import uses_zero3


def writes_together(trainer: Any) -> bool:
    """Does each turn that the student writes need all processes, as they hold its weights together?"""
    several = trainer.accelerator.num_processes > 1
    return bool(several and not trainer.use_vllm and (trainer.is_fsdp_enabled or uses_zero3(trainer)))


class RanksInStep:
    """Keeps processes that hold the student's weights together in one turn, however many turns each has to write.

    Before a turn each reports whether it has one. A process without one writes after a context of one token and drops
    the result, until no process has any.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.is_needed = trainer, writes_together(trainer)

    def begin_turn(self) -> None:
        """Report that this process writes a turn."""
        if self.is_needed:
            self._any_has_turn(True)

    def end(self, write: Callable[[list[list[int]]], Any]) -> None:
        """Take part in turns that nobody reads until no process has any left.

        `write` is the host's sampler, which continues contexts.
        """
        while self.is_needed and self._any_has_turn(False):
            self.write_idly(write)

    def write_idly(self, write: Callable[[list[list[int]]], Any]) -> None:
        """Take part in a turn in which this process has no row."""
        write([[self.trainer._tokenizer.eos_token_id]])

    def _any_has_turn(self, mine: bool) -> bool:
        return bool(self.trainer.ranks.sum(torch.tensor([float(mine)])).item())
