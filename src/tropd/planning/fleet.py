"""One step on different numbers of GPUs: the same sequences, split differently."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .run_plan import RunPlan, plan_run
from .shape import ModelShape
from .time import Hardware


@dataclass(frozen=True)
class Fleet:
    """A run on some GPUs, one process each; with `sharded` FSDP2 shards both models over them."""

    gpus: int
    sharded: bool
    micro_rows: int
    accumulation: int
    plan: RunPlan
    hardware: Hardware

    @property
    def fits(self) -> bool:
        return self.plan.memory.fits(self.hardware.memory).fits

    @property
    def step_seconds(self) -> float:
        return self.plan.time_on(self.hardware).total

    @property
    def run_hours(self) -> float:
        return self.plan.max_steps * self.step_seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.run_hours


def plan_fleets(
    make_args: Callable[..., Any],
    student: ModelShape,
    teacher: ModelShape,
    hardware: Hardware,
    *,
    gpus: Sequence[int],
    sequences_per_step: int,
    micro_rows: int,
    num_generations: int,
    **lengths: Any,
) -> list[Fleet]:
    """Plans for each number of GPUs, replicated and (for several) sharded."""
    fleets = []
    for number in gpus:
        if number < 1 or sequences_per_step % (number * num_generations):
            raise ValueError(
                f"gpus has {number}, over which {sequences_per_step} sequences a step ({num_generations} of each "
                "prompt) cannot be split evenly. Choose another number, or another sequences_per_step."
            )
        rows = _largest_divisor(sequences_per_step // number, micro_rows)
        accumulation = sequences_per_step // number // rows
        args = make_args(per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation)
        for sharded in (False, True) if number > 1 else (False,):
            plan = plan_run(args, student, teacher, num_processes=number, sharded=sharded, on_gpu=True, **lengths)
            fleets.append(Fleet(number, sharded, rows, accumulation, plan, hardware))
    return fleets


def _largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is at most `at_most`.

    >>> _largest_divisor(64, 4), _largest_divisor(6, 4), _largest_divisor(7, 4)
    (4, 3, 1)
    """
    return max(divisor for divisor in range(1, min(number, at_most) + 1) if number % divisor == 0)
