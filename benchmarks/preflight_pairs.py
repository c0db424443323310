"""Students at known distances from the story model: layers taken out, noise on the weights, or nothing learned."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tropd.comparison.cell.texts import load_model
from tropd.models.pruning import write_student

Change = Callable[[PreTrainedModel], PreTrainedModel]
SEED = 0


def with_noise(relative: float) -> Change:
    """Gaussian noise on every matrix, `relative` to the standard deviation of its entries."""

    def change(model: PreTrainedModel) -> PreTrainedModel:
        torch.manual_seed(SEED)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.add_(torch.randn_like(parameter) * relative * parameter.std())
        return model

    return change


def with_random_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture, freshly initialised."""
    torch.manual_seed(SEED)
    fresh = AutoModelForCausalLM.from_config(model.config)
    fresh.generation_config = model.generation_config
    return fresh


def with_another_vocabulary(model: PreTrainedModel) -> PreTrainedModel:
    """Token ids permuted: the same model of the same text, under ids that mean something else."""
    torch.manual_seed(SEED)
    rows = model.get_input_embeddings().weight.data
    rows.copy_(rows[torch.randperm(len(rows))].clone())
    return model


STORY_STUDENTS: dict[str, list[int] | Change] = {
    "whole": lambda model: model,
    "noise 0.05": with_noise(0.05),
    "noise 0.1": with_noise(0.1),
    "without layer 2": [0, 1, 3, 4],
    "without layer 1": [0, 2, 3, 4],
    "layers 0, 1, 4": [0, 1, 4],
    "random weights": with_random_weights,
}


def write_story_student(stories: str | Path, change: list[int] | Change, out: Path) -> Path:
    """The story model, changed, as a model folder with its tokenizer; a folder that is there is kept."""
    if (out / "config.json").is_file():
        return out
    shutil.rmtree(out, ignore_errors=True)
    if isinstance(change, list):
        write_student(stories, change, out)
        return out
    change(load_model(stories)).save_pretrained(out)
    AutoTokenizer.from_pretrained(str(stories)).save_pretrained(out)
    return out
