"""Exact divergences against the plain computation from whole logits."""

import pytest
import torch

from training import tiny
from tropd.evaluation.exact import exact_divergence, sample_responses

PROMPTS = ["a+b=", "c+d=", "e+f="]


@pytest.fixture
def pair():
    return tiny.llama(seed=1).eval(), tiny.llama(seed=2).eval()


def rows():
    return [tiny.ids(prompt) for prompt in PROMPTS], [tiny.ids("bc"), tiny.ids("d"), tiny.ids("efab")]


def plain(student, teacher, prompts, responses):
    """Reverse KL, forward KL and total variation, row by row, from whole logits in float64."""
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([prompt + response])
        place = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        with torch.no_grad():
            p, q = (m(ids).logits[0, place].double().log_softmax(-1) for m in (student, teacher))
        sums += torch.stack(
            [(p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum(), 0.5 * (p.exp() - q.exp()).abs().sum()]
        )
        count += len(response)
    return (sums / count).tolist()


@pytest.mark.parametrize("rows_per_pass", [1, 2, 16])
def test_exact_divergences_are_the_plain_ones_whatever_the_batch(pair, rows_per_pass):
    found = exact_divergence(*pair, *rows(), rows_per_pass=rows_per_pass, pad_id=tiny.PAD)
    assert [found.reverse_kl, found.forward_kl, found.total_variation] == pytest.approx(plain(*pair, *rows()), rel=1e-4)
    assert found.num_states == sum(map(len, rows()[1]))


def test_a_model_is_at_no_distance_from_itself(pair):
    found = exact_divergence(pair[0], pair[0], *rows(), pad_id=tiny.PAD)
    assert found.reverse_kl == found.forward_kl == found.total_variation == 0


def test_no_states_are_refused_in_a_sentence(pair):
    with pytest.raises(ValueError, match="no response tokens"):
        exact_divergence(*pair, [], [])


def test_samples_are_seeded_end_with_eos_and_leave_the_global_generator_alone(pair):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    options = {"max_new_tokens": 12, "eos_ids": [tiny.EOS], "pad_id": tiny.PAD, "seed": 3}
    first, again = (sample_responses(pair[0], rows()[0], **options) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert first == again
    assert all(tiny.EOS not in response[:-1] and 1 <= len(response) <= 12 for response in first)
