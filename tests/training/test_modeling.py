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
from tropd.models.hidden_states import expose_hidden_states, head_of, head_rows
from tropd.models.packing import pack_responses

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
    with pytest.raises(ValueError, match=r"adapter wraps the output layer .* Merge it"):
        head_of(model)


def test_an_adapter_of_some_tokens_on_the_output_layer_is_refused():
    model = get_peft_model(
        tiny.llama(1), LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"lm_head": [5]})
    )
    with pytest.raises(ValueError, match=r"adapter wraps the output layer of \w+ \(TrainableTokensWrapper\)"):
        head_of(model.get_base_model())


def test_an_output_layer_that_is_trained_beside_an_adapter_is_read_as_trained_and_without_it_as_it_was():
    model = get_peft_model(tiny.llama(1), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    layer, before = model.get_output_embeddings(), tiny.llama(1).lm_head.weight
    with torch.no_grad():
        layer.modules_to_save["default"].weight.mul_(2)
    head = head_of(model.get_base_model())
    assert torch.equal(head.weight, 2 * before) and head.weight.requires_grad
    with model.disable_adapter():
        assert torch.equal(head_of(model.get_base_model()).weight, before)


class Quantised(torch.nn.Linear):
    """Keeps its weights in eight bits, as bitsandbytes' `Linear8bitLt` does."""

    def __init__(self, layer, packed=False):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        scale = layer.weight.detach().abs().amax() / 127
        whole = (layer.weight.detach() / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole.flatten()[:, None] if packed else whole, requires_grad=False)
        self.scale, self.shape = scale, layer.weight.shape

    def forward(self, states):
        return states @ (self.weight.view(self.shape) * self.scale).T


class Wrapped(torch.Tensor):
    """A tensor of another layout behind floating numbers, as torchao's are."""

    def __tensor_flatten__(self):
        return [], None


@pytest.mark.parametrize("kind", ["eight bits", "packed", "a tensor of its own"])
def test_a_quantised_output_layer_is_refused_with_its_module(kind):
    model = tiny.llama(1)
    if kind == "a tensor of its own":
        weight = model.lm_head.weight.detach().as_subclass(Wrapped)
        del model.lm_head.weight
        model.lm_head.weight = weight
        said = "a quantised Linear .its weight is a Wrapped of float32"
    else:
        model.lm_head = Quantised(model.lm_head, packed=kind == "packed")
        said = "a quantised Quantised .its weight is a Parameter of int8"
    for read in (head_of, head_rows):
        with pytest.raises(ValueError, match=rf"the output layer of LlamaForCausalLM is {said}.*skip_modules"):
            read(model)


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
