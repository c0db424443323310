"""Packed weights: the same products, for the length of a call, and a row's bits do not depend on the rows beside it."""

from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tropd.rollout.engine import packed
from tropd.rollout.engine.noise import AddressedNoise, decoding_through
from tropd.rollout.engine.packed import packed_weights

WIDTH = 256

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="nothing is packed on this processor"
)


def layers(dtype=torch.float32, bias=True) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, 300, bias=bias, dtype=dtype), torch.randn(8, 1, WIDTH, dtype=dtype)


def packed_ones(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in vars(module)]


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("weights", "autocast"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_a_product_is_the_plain_one(weights, autocast, bias):
    layer, states = layers(getattr(torch, weights), bias)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = layer(states)
        with packed_weights(layer), patch.object(nn.Linear, "forward", None):
            ours = layer(states)
    assert ours.dtype == plain.dtype
    torch.testing.assert_close(ours, plain)


@torch.no_grad()
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it():
    layer, states = layers()
    with packed_weights(layer):
        whole = layer(states)
        assert all(torch.equal(layer(states[:rows]), whole[:rows]) for rows in range(1, 8))


def test_weights_are_copied_anew_for_each_call_and_calls_with_gradient_are_plain():
    layer, states = layers()
    with torch.no_grad():
        for factor in (1.0, 2.0):
            layer.weight.mul_(factor)
            with packed_weights(layer):
                ours = layer(states)
            torch.testing.assert_close(ours, layer(states))
    with packed_weights(layer):
        layer(states).sum().backward()
    assert layer.weight.grad is not None and not packed_ones(layer)


class Quantised(nn.Linear):
    """Someone else's layer."""


def test_what_would_not_pay_or_is_not_known_is_left_alone(monkeypatch):
    known = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16)]
    unknown = [
        nn.Linear(WIDTH, WIDTH - 1),
        nn.Linear(WIDTH, WIDTH, dtype=torch.float64),
        nn.Linear(WIDTH, WIDTH, device="meta"),
        Quantised(WIDTH, WIDTH),
    ]
    model = nn.Sequential(*known, *unknown)
    with packed_weights(model):
        assert packed_ones(model) == known
    monkeypatch.setattr(packed, "_memory", lambda: 8 * (4 + 2) * WIDTH**2 - 1)
    with packed_weights(model):
        assert not packed_ones(model)


def test_rollouts_use_it_and_leave_the_model_as_it_was():
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, initializer_range=0.2, **sizes)).eval()
    ids = torch.randint(3, 300, (4, 5))
    config = GenerationConfig(
        max_new_tokens=packed.PAYS_FROM, do_sample=True, top_k=0, pad_token_id=0, disable_compile=True
    )

    def written() -> torch.Tensor:
        with decoding_through(model, AddressedNoise(0, 0, 2, [(row, 0) for row in range(len(ids))])):
            return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)

    with patch.object(packed, "PAYS_FROM", packed.PAYS_FROM + 1):
        plain = written()
    with patch.object(packed._Packed, "_copy", autospec=True, side_effect=packed._Packed._copy) as copy:
        assert torch.equal(written(), plain)
    assert copy.call_count >= 2 * 7 + 1 and not packed_ones(model)
