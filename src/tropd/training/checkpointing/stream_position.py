"""Where a run was in a stream of prompts, which the host reads again from its start when it ends before the run."""

import json
import math
from pathlib import Path


def place_in_stream(checkpoint: str | Path, micro_batches_a_step: int) -> tuple[int, int]:
    """Passes over the stream that a checkpoint's run had ended, and micro-batches it had read of the pass under way.

    The host takes a stream for as long as the run. Its `epoch` is passes + micro-batches / (max_steps · micro-batches a
    step), and tells better.

    Args:
        checkpoint: folder with a `trainer_state.json`.
        micro_batches_a_step: `gradient_accumulation_steps`.
    """
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    passes = max(math.ceil(state["epoch"]) - 1, 0)
    return passes, round((state["epoch"] - passes) * state["max_steps"]) * micro_batches_a_step
