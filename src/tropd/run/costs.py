"""What a prepared run will take: memory and disk from its configuration, time from what a probe measured."""

import math
import os
from typing import Any

from ..planning import ModelShape, Rates, RunPlan, StepTime, available_memory, check_disk, model_shape, plan_run
from .assemble import adapter
from .prepare import RunInputs


def plan_of(inputs: RunInputs) -> RunPlan:
    """Memory of a process and disk of the run."""
    args = inputs.args
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return plan_run(
        args,
        shape_of(inputs.student),
        shape_of(inputs.teacher),
        prompt_tokens=inputs.mean_prompt_tokens,
        longest_prompt=inputs.longest_prompt_tokens,
        num_processes=processes,
        sharded=bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true",
        lora_parameters=adapter_parameters(inputs) if inputs.configuration.settings.use_peft else None,
        teacher_writes="teacher_response" not in inputs.data.dataset.column_names,
        max_steps=num_steps(args, len(inputs.data), processes),
    )


def shape_of(files: Any) -> ModelShape:
    """A model's sizes: of its folder where it has one (which tells the stored dtype), else of its configuration."""
    return model_shape(files.name if os.path.isdir(files.name) else files.config)


def num_steps(args: Any, num_prompts: int, num_processes: int) -> int:
    """Optimiser steps of a run: `max_steps`, or the whole prompts that the epochs fill steps with."""
    if args.max_steps > 0:
        return args.max_steps
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
    return max(1, math.ceil(args.num_train_epochs * (num_prompts * args.num_generations // rows)))


def adapter_parameters(inputs: RunInputs) -> int:
    """Parameters of the LoRA adapter, counted on a model without storage."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(inputs.student.config)
        wrapped = get_peft_model(model, adapter(inputs.configuration.settings))
    return sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)


def check_room(inputs: RunInputs, plan: RunPlan) -> str | None:
    """A warning where the run may not fit into memory; `None` where it does.

    Raises:
        ValueError: the disk is too small for its checkpoints.
    """
    check_disk(inputs.args.output_dir, plan.disk.total)
    fit = plan.memory.fits(available_memory(inputs.args.use_cpu))
    return None if fit.fits else fit.sentence


def time_of(plan: RunPlan, times: Any) -> StepTime:
    """Seconds of a step from a probe's measured stages."""
    share = 1 / times.num_processes
    return plan.time(
        Rates(
            rollout=share * times.response_tokens / times.rollout_seconds,
            student_scoring=share * times.scored_tokens / times.student_seconds,
            teacher_scoring=share * times.scored_tokens / times.teacher_seconds,
        )
    )
