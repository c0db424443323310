"""What a saved student says of its endings, so that it stops outside of tropd, too."""

import copy
from typing import Any

from accelerate.utils import is_peft_model


def save_ending(trainer: Any, folder: str) -> None:
    """Let the tokenizer in `folder` name the ending that the student writes by now.

    generation_config.json names every id at which rollouts stop and is saved with the model; an adapter's folder has
    none, so it is written there. The tokenizer names one: the student's own, unless most responses of the last step
    that ended did so with another.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(model):
        model.generation_config.save_pretrained(folder)
    ended_by: dict[int, int] = trainer.ended_by
    most = max(ended_by, key=ended_by.__getitem__, default=None)
    if most is None or most == trainer._tokenizer.eos_token_id or 2 * ended_by[most] <= sum(ended_by.values()):
        return
    tokenizer = copy.deepcopy(trainer.processing_class)
    getattr(tokenizer, "tokenizer", tokenizer).eos_token = trainer._tokenizer.convert_ids_to_tokens(most)
    tokenizer.save_pretrained(folder)
