"""Updates that round away in the weights' precision: weights are kept in float32, or a warning is logged."""

import logging
from typing import Any

import torch
from accelerate.utils import is_peft_model

from .reading import local_part

logger = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)
LEAST_MOVED = 0.5
"""Share of the sampled weights that a step must have moved."""


def keep_master_weights(trainer: Any) -> None:
    """Make trained weights in half precision float32, before anything refers to them.

    An adapter computes in the precision of its base, and DeepSpeed has copies in float32 of its own. Where nothing
    casts for a layer what the one before it gives, all of the model becomes float32.
    """
    model = trainer.model
    half = [p for p in model.parameters() if p.requires_grad and p.dtype in HALF]
    if not half or not trainer.args.master_weights or is_peft_model(model) or trainer.is_deepspeed_enabled:
        return
    dtype = str(half[0].dtype).removeprefix("torch.")
    if trainer.accelerator.mixed_precision == "no":
        model.float()
    else:
        for parameter in half:
            parameter.data = parameter.data.float()
    if trainer.is_world_process_zero():
        logger.warning(
            "The student was loaded in %s, in which updates of about the learning rate round away: its weights are "
            "kept, trained and saved in float32, 16 bytes each with gradient and AdamW's moments instead of 8. "
            "master_weights: false trains them in %s.",
            dtype,
            dtype,
        )


def sample_half_precision(model: Any) -> list[torch.Tensor]:
    """Sampled entries of each trainable weight in half precision, of this process's part."""
    weights = [p for p in model.parameters() if p.requires_grad and p.dtype in HALF]
    return [local_part(p).detach().flatten()[:: max(1, p.numel() // 1024)].clone() for p in weights]


def check_updates(trainer: Any, before: list[torch.Tensor]) -> None:
    """Warn where a step has left most of a half-precision student's weights as they were: it rounds away."""
    after = sample_half_precision(trainer.model)
    moved = torch.cat([(now != then).flatten() for now, then in zip(after, before, strict=True)])
    share = moved.float().mean().item()
    if share < LEAST_MOVED and trainer.is_world_process_zero():
        dtype = str(after[0].dtype).removeprefix("torch.")
        logger.warning(
            "the first step moved %.1f%% of the student's weights: they are kept in %s, in which an update of "
            "about the learning rate (%g) rounds away. Leave master_weights at true and compute in half precision "
            "with bf16: true, keep an adapter's weights in float32, or raise the rate.",
            100 * share,
            dtype,
            trainer._get_learning_rate(),
        )
