"""A few real optimiser steps, thrown away: what a step takes, before a run is started."""

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from .assemble import build_trainer
from .prepare import RunInputs, hardware_defaults


@dataclass(frozen=True)
class TrialStep:
    """One optimiser step: seconds, the largest memory so far (of the GPU where there is one, else of the process), its
    loss."""

    seconds: float
    peak_bytes: int
    loss: float


def trial_inputs(inputs: RunInputs, num_steps: int, folder: str) -> RunInputs:
    """The inputs of a run that leaves no files."""
    changed = inputs.configuration.changed(
        output_dir=folder,
        max_steps=max(1, num_steps),
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        save_final_model=False,
        push_to_hub=False,
        resume_from_checkpoint=None,
        report_to="none",
        rollout_log_steps=0,
        logging_strategy="steps",
        logging_steps=1,
        collapse_patience=None,
    )
    return replace(inputs, configuration=changed, args=changed.training_arguments(**hardware_defaults(changed.trainer)))


def take_steps(trainer: Any) -> list[TrialStep]:
    """Train for `max_steps` and tell what each step took."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    watch = _Watch()
    trainer.add_callback(watch)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [TrialStep(*taken, loss) for taken, loss in zip(watch.taken, losses, strict=True)]


class _Watch(TrainerCallback):
    def __init__(self) -> None:
        self.taken: list[tuple[float, int]] = []
        self._started = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.taken.append((max(time.perf_counter() - self._started, 0.0), peak_bytes()))


def peak_bytes() -> int:
    """Largest memory that this process has held: on the GPU where there is one, else in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def silent_trainer(inputs: RunInputs) -> Any:
    trainer = build_trainer(inputs)
    trainer.remove_callback(PrinterCallback)
    return trainer
