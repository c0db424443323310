"""Plain sampling with Transformers outside of training steps: teacher responses and evaluation samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from .hidden_states import head_rows, replaced

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""All that sampling takes from a model's own generation_config."""


@contextmanager
def as_asked(model: Any) -> Iterator[None]:
    """Inside, `model.generate` samples exactly as its caller says.

    What a caller leaves out Transformers fills in from the model's generation_config.json, where anything may stand
    that reshapes the softmax: top-p, penalties, beams, suppressed tokens. Both models are scored with the whole one.
    """
    owner = getattr(model, "get_base_model", lambda: model)()
    config = GenerationConfig(**{name: getattr(owner.generation_config, name, None) for name in IDS})
    with replaced(owner, "generation_config", config):
        yield


@torch.no_grad()
def sample(
    model: Any,
    contexts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    temperature: float = 1.0,
    vocab_limit: int | None = None,
    synced_gpus: bool = False,
    **reshaping: float,
) -> list[list[int]]:
    """One continuation of each context from the whole softmax, as token ids up to and with the first ending.

    Args:
        model: a causal language model.
        contexts: token ids, of any lengths.
        max_new_tokens: length at which a continuation is cut.
        eos_ids: every id that ends a continuation.
        pad_id: any valid id.
        temperature: of the softmax; 0 takes the likeliest token.
        vocab_limit: draw ids below it only (a head padded further than the reader's).
        synced_gpus: continue until every rank has finished, as sharded weights require.
        reshaping: `top_p`, `top_k` and `min_p`, where responses are to be drawn from less than the whole softmax.
    """
    width = max(len(context) for context in contexts)
    padding = [width - len(context) for context in contexts]
    input_ids = [[pad_id] * gap + list(context) for gap, context in zip(padding, contexts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in padding]
    rows_of_head = head_rows(model)
    reshaping = {"top_k": 0} | reshaping  # Transformers' own default is 50
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        use_cache=True,
        temperature=temperature or 1.0,
        pad_token_id=pad_id,
        eos_token_id=list(eos_ids),
        suppress_tokens=list(range(vocab_limit or rows_of_head, rows_of_head)) or None,
        **reshaping,
    )
    with as_asked(model):
        output = model.generate(
            input_ids=torch.tensor(input_ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=settings,
            **({"synced_gpus": True} if synced_gpus else {}),
        )
    return [row[: len(until_eos(row, eos_ids)) + 1] for row in output[:, width:].tolist()]


def until_eos(token_ids: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """The tokens before the first end-of-sequence token."""
    first = next((position for position, token in enumerate(token_ids) if token in eos_ids), len(token_ids))
    return list(token_ids[:first])
