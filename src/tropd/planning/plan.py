"""`plan_run`: what a run will take, before anything is loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .disk import DiskEstimate, estimate_disk
from .memory import MemoryEstimate, estimate_memory
from .setup import HeldTeacher, Setup, read_setup
from .shape import ModelShape
from .time import Hardware, Rates, StepTime, Work, step_work, time_from_hardware, time_from_rates

if TYPE_CHECKING:
    from ..training.config import TrOPDConfig


@dataclass(frozen=True)
class RunPlan:
    """Estimates of a run.

    Attributes:
        setup: what they were made from.
        memory: of one process.
        work: of one optimiser step on one process.
        disk: of the whole run.
        max_steps: optimiser steps.
    """

    setup: Setup
    memory: MemoryEstimate
    work: dict[str, Work]
    disk: DiskEstimate
    max_steps: int

    @property
    def step_tokens(self) -> float:
        """Response tokens of one optimiser step, over all processes."""
        work = self.setup.work
        return work.update_rows * work.response_tokens * self.setup.num_processes

    def time(self, rates: Rates) -> StepTime:
        """Seconds of a step from measured speeds of one process."""
        return time_from_rates(self.setup, rates)

    def time_on(self, hardware: Hardware) -> StepTime:
        """Seconds of a step from a device's peak numbers: a guess, never measured."""
        return time_from_hardware(self.setup, hardware)


def plan_run(
    args: "TrOPDConfig",
    student: ModelShape,
    teacher: ModelShape,
    *,
    prompt_tokens: float,
    response_tokens: float | None = None,
    longest_prompt: int | None = None,
    num_processes: int = 1,
    sharded: bool | None = None,
    lora_parameters: int | None = None,
    teacher_writes: bool = True,
    on_gpu: bool | None = None,
    shares_base: bool = False,
    teacher_name: str | None = None,
    beside: tuple[HeldTeacher, ...] = (),
    max_steps: int | None = None,
) -> RunPlan:
    """Memory, work and disk of a run.

    Args:
        args: the configuration.
        student: see `model_shape`.
        teacher: as `student`.
        prompt_tokens: mean length of a rendered prompt.
        response_tokens: mean length of a response, prefix included; `max_completion_length` by default.
        longest_prompt: tokens of the longest prompt; the mean by default.
        num_processes: processes that share a step.
        sharded: does FSDP shard both models over them? `None`: as `args.fsdp` says.
        lora_parameters: parameters of the adapter; `None` trains the whole student.
        teacher_writes: does the teacher write prefixes while training (no `teacher_response` column)? Only guided
            methods read it.
        on_gpu: `None`: as this machine and `args.use_cpu` say.
        shares_base: is the teacher the base of the student's adapter, loaded once?
        teacher_name: of several teachers, the name of this one, the largest; `plan_arguments` finds it.
        beside: the others.
        max_steps: optimiser steps; `args.max_steps` by default.

    Raises:
        ValueError: the number of steps is not known.
    """
    steps = args.max_steps if max_steps is None else max_steps
    if steps < 1:
        raise ValueError(
            f"max_steps is {steps}, so the length of the run is not known; give plan_run the number of optimiser steps "
            "(prompts × epochs × num_generations over the rows of a step)."
        )
    setup = read_setup(
        args,
        student,
        teacher,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        longest_prompt=longest_prompt,
        num_processes=num_processes,
        sharded=sharded,
        lora_parameters=lora_parameters,
        teacher_writes=teacher_writes,
        on_gpu=on_gpu,
        shares_base=shares_base,
        teacher_name=teacher_name,
        beside=beside,
    )
    return RunPlan(setup, estimate_memory(setup), step_work(setup), estimate_disk(args, setup, steps), steps)
