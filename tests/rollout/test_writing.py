"""A model writes what a plain forward pass of it reads; one that does not is decoded in another way, or refused."""

import logging
import re

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from training import tiny
from tropd.rollout.engine.noise import AddressedNoise, decoding_through, drawing_without_address, run_race

CONTEXTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15, 16, 17], [20, 21, 22, 23, 24, 25, 26], [9]]
NEW_TOKENS = 8
COMMON = {"vocab_size": 64, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def sharp(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


def recurrent_gemma():
    return sharp(
        RecurrentGemmaForCausalLM(
            RecurrentGemmaConfig(
                **COMMON,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                lru_width=32,
                attention_window_size=64,
                logits_soft_cap=1e6,
            )
        )
    )


def rwkv():
    return sharp(
        RwkvForCausalLM(
            RwkvConfig(**COMMON, attention_hidden_size=32, intermediate_size=32, num_hidden_layers=2, context_length=64)
        )
    )


class OtherStep(LlamaForCausalLM):
    """Computes something else behind a cache."""

    def forward(self, input_ids=None, past_key_values=None, **given):
        behind = past_key_values is not None and past_key_values.get_seq_length() > 0
        output = super().forward(input_ids=input_ids, past_key_values=past_key_values, **given)
        output.logits = output.logits * (0.5 if behind else 1.0)
        return output


def asked():
    width = max(map(len, CONTEXTS))
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=[63], disable_compile=True
    )
    ids = torch.tensor([[0] * (width - len(context)) + context for context in CONTEXTS])
    mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in CONTEXTS])
    return {"input_ids": ids, "attention_mask": mask, "generation_config": config}


def noise(places):
    return AddressedNoise(seed=0, step=0, stream=2, places=places)


@torch.no_grad()
def not_drawn(model, row, response):
    """Tokens of a response that the race over the model's own softmax, of one unpadded row, would not have drawn."""
    ids = torch.tensor([CONTEXTS[row] + response])
    logps = model(input_ids=ids, use_cache=False).logits[0, len(CONTEXTS[row]) - 1 : -1].float().log_softmax(-1)
    drawn = run_race(logps, noise([(row, 0)]).keys(len(response))[0]).argmax(-1).tolist()
    return sum(a != b for a, b in zip(drawn, response, strict=True))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (recurrent_gemma, "RecurrentGemmaForCausalLM .*prompts of different lengths are decoded separately"),
        (rwkv, "RwkvForCausalLM .*each row is decoded separately"),
        (lambda: tiny.llama(seed=0).eval(), None),
    ],
    ids=["RecurrentGemma", "RWKV", "Llama"],
)
def test_every_token_is_drawn_from_what_a_plain_forward_reads(make, said, caplog):
    model = make()
    with decoding_through(model, noise([(row, 0) for row in range(len(CONTEXTS))])):
        output = model.generate(**asked())
    given = asked()["input_ids"]
    assert torch.equal(output[:, : given.shape[1]], given)
    for row, response in enumerate(output[:, given.shape[1] :].tolist()):
        written = response[: response.index(63) + 1] if 63 in response else response
        assert not_drawn(model, row, written) == 0
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    ours = [text for text in warned if "a different distribution" in text]
    assert len(ours) == (said is not None)
    assert said is None or re.search(said, ours[0])


def test_a_model_whose_step_computes_something_else_is_refused():
    model = OtherStep(tiny.llama(seed=0).config)
    with (
        pytest.raises(ValueError, match=r"a OtherStep does not sample from its own softmax: .* nats per token"),
        decoding_through(model, noise([(row, 0) for row in range(len(CONTEXTS))])),
    ):
        model.generate(**asked())


def test_without_addresses_a_model_that_reads_padding_is_refused():
    model = recurrent_gemma()
    with (
        pytest.raises(ValueError, match=r"addressed_sampling is False, but a RecurrentGemmaForCausalLM samples from"),
        drawing_without_address(model),
    ):
        model.generate(**asked())
    assert "generate" not in vars(model)
    llama = tiny.llama(seed=0).eval()
    torch.manual_seed(0)
    expected = llama.generate(**asked())
    torch.manual_seed(0)
    with drawing_without_address(llama):
        assert torch.equal(llama.generate(**asked()), expected), "the generator is not moved"
