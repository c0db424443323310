"""The final model of a run that had ended its training when it was killed: made from its last checkpoint."""

import json
import shutil
from pathlib import Path

from .checkpoints import (
    ASIDE,
    MANIFEST,
    WEIGHTS,
    check_checkpoint,
    clear_aside,
    has_final_model,
    publish_model,
    room_on_disk,
    steps_of,
)

STATE_OF_TRAINING = (
    "optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "tropd_state.json", "training_args.bin",
    MANIFEST, "global_step*", "latest", "zero_to_fp32.py", "pytorch_model_fsdp*", "README.md",
)  # fmt: skip
"""What a checkpoint holds besides its model."""


def is_missing(output_dir: str | Path, checkpoint: str | Path) -> bool:
    """Does the run's folder lack the final model that its checkpoint would be?

    Weights alone tell nothing: a push while the run goes on copies those of a checkpoint there.
    """
    return not has_final_model(output_dir, steps_of(checkpoint))


def make_from(checkpoint: str | Path, output_dir: str | Path) -> Path:
    """Write the final model of a finished run from one of its checkpoints.

    Returns:
        The checkpoint it is from.

    Raises:
        ValueError: the checkpoint is not whole, or holds each process's part of the weights alone.
    """
    source = Path(checkpoint)
    if not _weights(source):
        raise ValueError(
            f"{output_dir} has no final model, and checkpoint {source} holds the weights of each process separately. "
            "Merge them with `accelerate merge-weights`, or raise max_steps by one and resume."
        )
    check_checkpoint(source)
    aside = Path(output_dir) / ASIDE / "model"
    with room_on_disk(output_dir):
        clear_aside(output_dir)
        shutil.copytree(source, aside, ignore=shutil.ignore_patterns(*STATE_OF_TRAINING))
        publish_model(output_dir, "model", steps_of(source))
    return source


def best_of(checkpoint: str | Path) -> Path:
    """The best checkpoint that a run knew of when this one was written; this one where it knew of none.

    Raises:
        ValueError: the best one is gone.
    """
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    best = Path(state.get("best_model_checkpoint") or checkpoint)
    for folder in (best, Path(checkpoint).parent / best.name):  # the run's folder may have moved
        if folder.is_dir():
            return folder
    raise ValueError(
        f"load_best_model_at_end is True, but {best.name}, the best of this run, is not next to "
        f"{checkpoint}. Put it back, or set load_best_model_at_end: false."
    )


def _weights(folder: Path) -> list[Path]:
    names = ("model", "adapter_model", "pytorch_model")
    return [path for path in folder.iterdir() if path.suffix in WEIGHTS and path.name.startswith(names)]
