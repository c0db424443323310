"""Updates that round away in the weights' precision."""

import logging
from typing import Any

import torch
from transformers import TrainerCallback

from .reading import local_part

logger = logging.getLogger(__name__)


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
                "about the learning rate (%g) rounds away. Load the student in float32 (model_init_kwargs: "
                "{dtype: float32}) and compute in half precision with bf16: true, train an adapter, or raise the rate.",
                100 * share,
                dtype,
                rate,
            )

    def _sampled(self) -> list[torch.Tensor]:
        """Entries of each trainable weight in half precision, of this process's part."""
        half = (torch.float16, torch.bfloat16)
        weights = [p for p in self.trainer.model.parameters() if p.requires_grad and p.dtype in half]
        return [local_part(p).detach().flatten()[:: max(1, p.numel() // 1024)].clone() for p in weights]
