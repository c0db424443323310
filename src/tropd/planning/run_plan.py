"""`plan_run`: what a run will take, before anything is loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .disk import DiskEstimate, estimate_disk
from .memory import MemoryEstimate, estimate_memory
from .setup import Setup, read_setup
from .shape import ModelShape
from .time import Hardware, Rates, StepTime, Work, step_work, time_from_hardware, time_from_rates

if TYPE_CHECKING:
    from ..training.config import TrOPDConfig


@dataclass(frozen=True)
class RunPlan:
    """Estimates of a run, and what they were made from: memory and work of a step on one process, disk of the whole
    run."""

    setup: Setup
    memory: MemoryEstimate
    work: dict[str, Work]
    disk: DiskEstimate
    max_steps: int

    def time(self, rates: Rates) -> StepTime:
        """Seconds of a step from measured speeds of one process."""
        return time_from_rates(self.setup, rates)

    def time_on(self, hardware: Hardware) -> StepTime:
        """Seconds of a step from a device's peak numbers: a guess, never measured."""
        return time_from_hardware(self.setup, hardware)


def plan_run(
    args: "TrOPDConfig", student: ModelShape, teacher: ModelShape, *, max_steps: int | None = None, **given: Any
) -> RunPlan:
    """Memory, work and disk of a run.

    `max_steps` is `args.max_steps` by default; `given` is what else `read_setup` takes, such as `prompt_tokens`.

    Raises:
        ValueError: the number of steps is not known.
    """
    steps = args.max_steps if max_steps is None else max_steps
    if steps < 1:
        raise ValueError(
            f"max_steps is {steps}, so the length of the run is not known; give plan_run the number of optimiser steps "
            "(prompts × epochs × num_generations over the rows of a step)."
        )
    setup = read_setup(args, student, teacher, **given)
    return RunPlan(setup, estimate_memory(setup), step_work(setup), estimate_disk(args, setup, steps), steps)
