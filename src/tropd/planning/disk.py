"""Bytes that a run leaves on disk, and whether they fit."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .memory import human_bytes
from .setup import Setup
from .stages import optimizer_bytes

if TYPE_CHECKING:
    from ..training.config import TrOPDConfig

SMALL_FILES_BYTES = 20_000_000
"""Tokenizer, configuration, scheduler and random state beside the weights; a large tokenizer is most of it."""

TOKEN_RECORD_BYTES, ALTERNATIVE_BYTES = 250, 18
"""One token of a logged rollout, and each of the teacher's likeliest beside it, as JSON."""


@dataclass(frozen=True)
class DiskEstimate:
    """Bytes that a run writes to its output directory; `num_checkpoints` lie there at most, the one being written
    included."""

    checkpoint: int
    num_checkpoints: int
    final_model: int
    logs: int

    @property
    def total(self) -> int:
        return self.checkpoint * self.num_checkpoints + self.final_model + self.logs


def estimate_disk(args: "TrOPDConfig", setup: Setup, max_steps: int) -> DiskEstimate:
    """Disk space of a run of `max_steps` optimiser steps."""
    # Weights are saved as trained: in float32 unless model_init_kwargs says otherwise. An adapter is saved alone.
    weights = setup.trainable * setup.trainable_bytes if setup.lora else setup.student.parameters * setup.weight_bytes
    model = weights + SMALL_FILES_BYTES
    state = 0 if args.save_only_model else optimizer_bytes(setup) * setup.shards
    logged = math.ceil(max_steps / args.rollout_log_steps) if args.rollout_log_steps else 0
    sequences = logged * min(args.rollouts_per_log, setup.work.micro_rows)
    token_bytes = TOKEN_RECORD_BYTES + args.alternatives_per_token * ALTERNATIVE_BYTES
    return DiskEstimate(
        checkpoint=model + state,
        num_checkpoints=_num_checkpoints(args, max_steps),
        final_model=model if args.save_final_model else 0,
        logs=round(sequences * setup.work.response_tokens * token_bytes),
    )


def _num_checkpoints(args: "TrOPDConfig", max_steps: int) -> int:
    """Checkpoints that lie on disk at once; an old one is removed only after the new one is written."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0
    written = math.ceil(args.num_train_epochs)
    if strategy == "steps":
        every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * max_steps)
        written = math.ceil(max_steps / every)  # the last step is always saved
    if args.save_total_limit is None or args.save_total_limit <= 0:
        return written
    kept = max(args.save_total_limit, 2 if args.load_best_model_at_end else 1)
    return min(written, kept + 1)


def check_disk(output_dir: str | Path, needed: int) -> None:
    """Refuse an output directory without room for `needed` bytes; the folder need not exist yet."""
    folder = Path(output_dir).expanduser().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"output_dir is {str(output_dir)!r}, where {human_bytes(free)} are free, but checkpoints and the final "
            f"model need about {human_bytes(needed)}. Set save_total_limit=1 to keep fewer checkpoints, "
            "save_only_model=True to leave out optimiser state (such a run cannot be resumed), or another output_dir."
        )
