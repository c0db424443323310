"""Can our decoding loop work with the Transformers that is installed? Asked by trying it, once in a process.

The loop calls models and caches as `generate` does, which releases change. A tiny random model is decoded with it, and
what it wrote and noted is held against a plain forward of the finished rows; where they differ, or it fails, rollouts
are left to Transformers' own loop.
"""

from functools import cache, partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ...models.sampling import sample

VOCABULARY, NEW_TOKENS, ROUNDING = 24, 6, 1e-4


@cache
@torch.no_grad()
def why_not_here() -> str | None:
    """What is wrong with our loop here, in words; `None` where it writes what a plain forward reads."""
    from .loop import SamplerNotes
    from .noise import SAMPLING_STREAM, AddressedNoise

    contexts = [[5, 6, 7, 8], [9], [5, 6, 7, 8], [10, 11]]
    notes = SamplerNotes(temperature=1.0)
    noise = AddressedNoise(0, 0, SAMPLING_STREAM, [(row, 0) for row in range(len(contexts))], notes=notes)
    model: Any = _tiny_model()
    vars(model)["generate"] = partial(model.generate, custom_generate=partial(noise.decode, unproven=True))
    try:
        written = sample(model, contexts, max_new_tokens=NEW_TOKENS, eos_ids=[3], pad_id=0)
    except Exception as error:  # whatever a release that has moved on may raise; the sentence goes to the user
        return f"it fails on a tiny model ({type(error).__name__}: {error})"
    for row, (context, response) in enumerate(zip(contexts, written, strict=True)):
        noted = notes.of(row, context, response)
        logits = model(input_ids=torch.tensor([context + response]), use_cache=False).logits[0, len(context) - 1 : -1]
        plain = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
        if noted is None or not torch.allclose(torch.tensor(noted.logps), plain, atol=ROUNDING, rtol=0):
            return "on a tiny model its log-probabilities differ from a plain forward pass"
    return None


def _tiny_model() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            initializer_range=1.0,
        )
        return LlamaForCausalLM(config).float().eval()
