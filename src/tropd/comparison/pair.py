"""A comparison's pair and prompts: a teacher, the same model with layers taken out, and the teacher's texts."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..compression import write_student
from ..evaluation.exact import sample_responses
from .plan import Recipe


@dataclass(frozen=True)
class Text:
    """A teacher's text, cut into prompt and response; all token ids."""

    prompt: str
    prompt_ids: list[int]
    response_ids: list[int]

    def as_row(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "teacher_response": self.response_ids}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_model(path: str | Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)


def eos_ids_of(model: PreTrainedModel) -> list[int]:
    eos = model.generation_config.eos_token_id
    return list(eos) if isinstance(eos, list) else [eos]


def build_student(teacher_path: str | Path, keep_layers: list[int], out: str | Path) -> None:
    """Write the teacher with only `keep_layers` as a model folder, its tokenizer with it."""
    shutil.rmtree(out, ignore_errors=True)  # of a comparison that ended before its prompts were written
    write_student(teacher_path, keep_layers, out)


def write_texts(teacher_path: str | Path, recipe: Recipe) -> dict[str, list[Text]]:
    """The teacher's own texts from an empty context, split into disjoint train, validation and test prompts.

    The prompt is a text's first tokens (a length in `prompt_tokens`, by turns), the response its continuation. A text
    whose prompt does not survive decoding and tokenising, or was seen before, is skipped.
    """
    teacher, tokenizer = load_model(teacher_path), AutoTokenizer.from_pretrained(str(teacher_path))
    wanted = sum(recipe.num_prompts.values())
    texts: dict[str, Text] = {}
    batch = 0
    while len(texts) < wanted:
        if batch > 20 + wanted // 8:
            raise ValueError(f"the teacher wrote only {len(texts)} different prompts of {wanted} in {batch} batches")
        for text in _sample_texts(teacher, tokenizer, recipe, recipe.prompt_seed + batch):
            texts.setdefault(text.prompt, text)
        batch += 1
    ordered = list(texts.values())
    splits, start = {}, 0
    for name, count in recipe.num_prompts.items():
        splits[name] = ordered[start : start + count]
        start += count
    return splits


def _sample_texts(teacher: PreTrainedModel, tokenizer: Any, recipe: Recipe, seed: int) -> list[Text]:
    shortest, longest = recipe.prompt_tokens
    start = [tokenizer.bos_token_id]
    sampled = sample_responses(
        teacher,
        [start] * 64,
        max_new_tokens=longest + recipe.max_length,
        eos_ids=eos_ids_of(teacher),
        pad_id=tokenizer.pad_token_id,
        seed=seed,
    )
    texts = []
    for number, ids in enumerate(sampled):
        length = shortest + number % (longest - shortest + 1)
        prompt_ids = start + ids[:length]
        prompt = tokenizer.decode(prompt_ids, skip_special_tokens=True)
        response = ids[length : length + recipe.max_length]
        if response and tokenizer(prompt)["input_ids"] == prompt_ids:
            texts.append(Text(prompt, prompt_ids, response))
    return texts
