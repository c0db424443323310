"""What a prepared run will take: memory and disk from its configuration, time from what a probe measured."""

import math
import os
from pathlib import Path
from typing import Any

from ..planning import (
    ModelShape,
    Rates,
    RunPlan,
    StepTime,
    check_disk,
    model_shape,
    plan_arguments,
    plan_run,
)
from ..planning.shape import served_shape
from ..teacher.per_teacher_settings import distinct_names
from ..teacher.served.address import are_all_served, is_served
from .adapter import adapter, own_bases, targets_named
from .prepare import RunInputs
from .sources import is_sharded, rows_without_response


class NoEstimate(Exception):
    """The cost model does not know this architecture; nothing else depends on it."""


def plan_of(inputs: RunInputs, response_tokens: float | None = None) -> RunPlan:
    """Memory of a process and disk of the run; for times `response_tokens` is the mean length of a response.

    Raises:
        NoEstimate: an architecture without the sizes that the estimates are made from.
    """
    args, settings = inputs.args, inputs.configuration.settings
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    loaded = distinct_names(args, settings.teachers)
    shapes = {
        name: served_shape(settings.teachers[name])
        if is_served(settings.teachers[name])
        else shape_of(inputs.teachers[name], args.trust_remote_code)
        for name in loaded
    }
    return plan_run(
        student=shape_of(inputs.student, args.trust_remote_code),
        **plan_arguments(args, shapes, own_bases(settings, args)),
        prompt_tokens=inputs.mean_prompt_tokens,
        response_tokens=response_tokens,
        longest_prompt=inputs.longest_prompt_tokens,
        num_processes=processes,
        sharded=is_sharded(args),
        lora_parameters=adapter_parameters(inputs.student.config, settings) if settings.use_peft else None,
        teacher_writes=bool(rows_without_response(inputs.data)) and not are_all_served(settings.teachers),
        max_steps=num_steps(args, len(inputs.data)),
    )


def shape_of(files: Any, trust_remote_code: bool = False) -> ModelShape:
    """A model's sizes: of its folder where it has one (which tells the stored dtype), else of its configuration."""
    source = files.name if os.path.isdir(files.name) else files.config
    try:
        return model_shape(source, trust_remote_code=trust_remote_code)
    except AttributeError as error:
        raise NoEstimate(f"memory and time of {files.name} cannot be estimated: {error}") from error


def num_steps(args: Any, num_prompts: int) -> int:
    """Optimiser steps of a run: `max_steps`, or those of its epochs' whole rollout batches; one that is begun is taken.

    An epoch is a whole number of steps, since `steps_per_generation` is a multiple of `gradient_accumulation_steps`.
    """
    if args.max_steps > 0:
        return args.max_steps
    batches = num_prompts // (args.generation_batch_size // args.num_generations)
    per_epoch = batches * args.num_iterations * args.steps_per_generation // args.gradient_accumulation_steps
    return math.ceil(args.num_train_epochs * per_epoch)


def adapter_parameters(config: Any, settings: Any) -> int:
    """Parameters of the LoRA adapter on a model of this configuration, counted without storage."""
    import torch
    from peft import get_peft_model

    from ..models.hidden_states import language_model_class

    with torch.device("meta"), targets_named(settings):
        wrapped = get_peft_model(language_model_class(config, "the student").from_config(config), adapter(settings))
    return sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)


def check_room(inputs: RunInputs, plan: RunPlan) -> None:
    """Refuse a disk that is too small for the run; what a resumed run has already written is counted as present."""
    written = Path(inputs.args.output_dir).rglob("*") if inputs.args.resume_from_checkpoint else ()
    there = sum(path.stat().st_size for path in written if path.is_file())
    check_disk(inputs.args.output_dir, max(plan.disk.checkpoint, plan.disk.total - there) if there else plan.disk.total)


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
