"""One tokenizer for all domains: every prompt and solution survives it, and none of its tokens is unknown."""

import pytest

from tools.proving_ground.tokenizer import WORDS, build_tokenizer
from tropd.proving_ground.domains import DOMAINS, records


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_prompt_and_solution_survives(domain, tokenizer):
    for record in records(domain, "train", 300, seed=0):
        prompt, solution, both = (
            tokenizer(text)["input_ids"]
            for text in (record["prompt"], record["solution"], record["prompt"] + record["solution"])
        )
        assert both == prompt + solution
        assert not set(both) & set(tokenizer.all_special_ids)
        assert (tokenizer.decode(prompt), tokenizer.decode(solution)) == (record["prompt"], record["solution"])


@pytest.mark.parametrize("domain", DOMAINS)
def test_responses_are_long_enough_for_errors_to_compound(domain, tokenizer):
    lengths = sorted(
        len(tokenizer(record["solution"])["input_ids"]) for record in records(domain, "train", 600, seed=0)
    )
    assert lengths[300] > 60
    assert lengths[576] > 150


def test_a_token_shown_alone_keeps_its_space(tokenizer):
    ids = tokenizer("def solve(xs):\n    return xs[2:]")["input_ids"]
    assert "".join(tokenizer.decode([token]) for token in ids) == " def solve( xs):\n     return xs [ 2:]"


def test_the_vocabulary_is_small_and_its_special_tokens_differ(tokenizer):
    assert len(tokenizer) == len(WORDS) + 4 == len(set(WORDS)) + 4
    assert 150 <= len(tokenizer) <= 300
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    assert tokenizer.padding_side == "left"
