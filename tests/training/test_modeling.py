"""Hidden states and heads read from a model give the model's own logits, whatever its family does after the head."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    Qwen3Config,
)

from training import tiny
from training.tiny import PAD, clone
from tropd.modeling import expose_hidden_states, head_of
from tropd.packing import pack_responses

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGURATIONS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3, tied": Qwen3Config(**SMALL, tie_word_embeddings=True),
    "gemma2, softcap": Gemma2Config(**SMALL, final_logit_softcapping=2.0),
    "cohere, scale": CohereConfig(**SMALL, logit_scale=0.25),
    "granite, divisor": GraniteConfig(**SMALL, logits_scaling=4.0),
    "phi, bias": PhiConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, n_positions=64),
}


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_head_and_hidden_states_give_the_models_own_logits(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGURATIONS[family]).eval()
    if family == "phi, bias":
        torch.nn.init.normal_(model.lm_head.bias)
    ids = torch.randint(4, 60, (2, 7))
    expected = model(input_ids=ids).logits
    expose_hidden_states(model)
    ours = model(input_ids=ids, on_hidden=lambda hidden, head: head.logits(hidden.flatten(0, 1)))
    torch.testing.assert_close(ours, expected.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert torch.equal(model(input_ids=ids).logits, expected), "the ordinary forward is left alone"


def test_an_exposed_model_still_generates():
    model = clone(tiny.llama(0))
    expose_hidden_states(model)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape[1] <= 5


def test_a_model_without_a_language_head_is_refused():
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings; a causal language model is needed"):
        head_of(tiny.llama(0).model)


def test_an_adapter_on_the_output_layer_is_refused():
    model = get_peft_model(tiny.llama(1), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    with pytest.raises(ValueError, match=r"adapter lies on the output layer .* Merge it"):
        head_of(model)


def test_entry_t_is_predicted_by_the_state_before_token_t():
    packed = pack_responses([[5, 6], [7]], [[10, 11], [12, 13, 14]], [[True, True], [True, False, True]], PAD)
    assert packed.input_ids[0].tolist() == [[5, 6, 10, 11], [7, 12, 13, 14]]
    assert packed.token_ids.tolist() == [10, 11, 12, 14]
    # The state at the prompt's last token predicts the first response token.
    states = torch.arange(8.0).view(2, 4, 1)
    assert packed.states(states).flatten().tolist() == [1, 2, 4, 6]


def test_rows_are_padded_on_the_right_and_masked():
    packed = pack_responses([[5], [6, 7]], [[8], [9, 10]], [[True], [True, True]], PAD)
    assert packed.input_ids[0].tolist() == [[5, 8, PAD, PAD], [6, 7, 9, 10]]
    assert packed.attention_mask[0].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_an_empty_prompt_is_refused_with_its_row():
    with pytest.raises(ValueError, match="row 1 has an empty prompt, so nothing predicts its first response token"):
        pack_responses([[5], []], [[8], [9]], [[True], [True]], PAD)


def test_lengths_that_disagree_are_refused():
    with pytest.raises(ValueError, match="zip"):
        pack_responses([[5]], [[8, 9]], [[True]], PAD)
