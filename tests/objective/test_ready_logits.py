"""The plain path from ready logits and the sliced path from hidden states say the same."""

import pytest
import torch

from tropd import objective

TOKENS, WIDTH, VOCABULARY = 7, 5, 11


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_ready_logits_give_what_the_sliced_head_gives(temperature):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    head = objective.Head(weight, temperature=temperature)

    logps = objective.logps_of(hidden @ weight.t(), temperature)
    sliced_logp, sliced_entropy = objective.sampled_logps(hidden, head, tokens, slice_tokens=2)
    sliced_ids, sliced_topk = objective.topk_logps(hidden, head, 3, slice_tokens=2)
    ids, topk = objective.topk_of(logps, 3, VOCABULARY)

    torch.testing.assert_close(objective.gather_logps(logps, tokens), sliced_logp)
    torch.testing.assert_close(objective.entropy_of(logps), sliced_entropy)
    assert torch.equal(ids, sliced_ids)
    torch.testing.assert_close(topk, sliced_topk)


def test_half_precision_logits_are_widened_before_the_softmax():
    logits = torch.tensor([[10.0, 10.01, -5.0]], dtype=torch.bfloat16)
    assert objective.logps_of(logits).dtype == torch.float32
