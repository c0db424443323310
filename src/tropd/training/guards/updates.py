"""Updates that round away in the weights' precision: weights are kept in float32, or the loss is told."""

import logging
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import TrainerCallback

from .reading import local_part

logger = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)


def keep_master_weights(trainer: Any) -> None:
    """Make trained weights in half precision float32, before anything holds on to them.

    An adapter computes in the precision of its base, and DeepSpeed has copies in float32 of its own. Where nothing
    casts for a layer what the one before it gives, all of the model becomes float32.

    Args:
        trainer: a built host, whose optimiser is not made yet.
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
            "kept, trained and saved in float32, 16 bytes each with gradient and AdamW's moments in the place of 8. "
            "master_weights: false trains them in %s.",
            dtype,
            dtype,
        )


class UpdatesArrive(TrainerCallback):
    """Warns where the first step leaves most of a half-precision student's weights as they were: it rounds away.

    Args:
        trainer: whose student is looked at, a sample of each weight.
    """

    LEAST = 0.5
    """Share of the sampled weights that must have moved."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._before: list[torch.Tensor] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = self._sampled()

    def on_step_end(self, args, state, control, **kwargs):
        before, rate = self._before, self.trainer._get_learning_rate()
        if not before or not rate:  # in a warm-up that begins at 0 nothing moves yet
            return
        self._before, after = None, self._sampled()
        moved = torch.cat([(now != then).flatten() for now, then in zip(after, before, strict=True)])
        share = moved.float().mean().item()
        if share < self.LEAST and self.trainer.is_world_process_zero():
            dtype = str(after[0].dtype).removeprefix("torch.")
            logger.warning(
                "the first step moved %.1f%% of the student's weights: they are kept in %s, in which an update of "
                "about the learning rate (%g) rounds away. Leave master_weights at true and compute in half precision "
                "with bf16: true, keep an adapter's weights in float32, or raise the rate.",
                100 * share,
                dtype,
                rate,
            )

    def _sampled(self) -> list[torch.Tensor]:
        """Entries of each trainable weight in half precision, of this process's part."""
        weights = [p for p in self.trainer.model.parameters() if p.requires_grad and p.dtype in HALF]
        return [local_part(p).detach().flatten()[:: max(1, p.numel() // 1024)].clone() for p in weights]
