"""Training batches as a function of (seed, step): drawn in pools, sorted by length, so that little is padding."""

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tropd.proving_ground.domains import find_domain

BATCHES_IN_POOL = 32
TYPICAL_LENGTH = 80
"""Tokens of an average response. The loss of a batch is its sum over this many tokens a row, so that every token
weighs the same, in a batch of short rows as in one of long rows."""


EASY_LEVELS = (1, 2)


@dataclass(frozen=True)
class Mixture:
    """What a model learns from: the share of each domain, and a seed; a level, or the default mix of levels.

    The first `easy_steps` steps draw from `EASY_LEVELS` alone: what a problem asks is learned from short ones much
    sooner.
    """

    shares: tuple[tuple[str, float], ...]
    seed: int
    level: int | None = None
    easy_steps: int = 0


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of one right response, which ends with eos."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


def batch(mixture: Mixture, tokenizer: PreTrainedTokenizerFast, size: int, step: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels [size, T] of a step, padded on the right; labels are −100 off the response."""
    examples = _pool(mixture, tokenizer, size, step // BATCHES_IN_POOL)[step % BATCHES_IN_POOL]
    longest = max(example.length for example in examples)
    ids = torch.full((size, longest), tokenizer.pad_token_id)
    labels = torch.full((size, longest), -100)
    for row, example in enumerate(examples):
        ids[row, : example.length] = torch.tensor(example.prompt + example.response)
        labels[row, len(example.prompt) : example.length] = torch.tensor(example.response)
    return ids, labels


@lru_cache(maxsize=2)
def _pool(mixture: Mixture, tokenizer: PreTrainedTokenizerFast, size: int, pool: int) -> list[list[Example]]:
    """Batches of similar lengths, in random order."""
    rng = random.Random(f"pool {mixture} {size} {pool}")
    names, shares = zip(*mixture.shares, strict=True)
    levels = EASY_LEVELS if pool * BATCHES_IN_POOL < mixture.easy_steps else (mixture.level,)
    streams = {
        (name, level): find_domain(name).stream("train", f"{mixture.seed} {pool}", level)
        for name in names
        for level in levels
    }
    examples = []
    for name in rng.choices(names, shares, k=size * BATCHES_IN_POOL):
        problem, _ = next(streams[name, rng.choice(levels)])
        prompt, response = tokenizer([problem.prompt, find_domain(name).solve(problem, rng)])["input_ids"]
        examples.append(Example(tuple(prompt), (*response, tokenizer.eos_token_id)))
    examples.sort(key=lambda example: example.length)
    batches = [examples[start : start + size] for start in range(0, len(examples), size)]
    return rng.sample(batches, len(batches))
