"""Shapes are those of the real models, and nothing is read to find them."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from shipped import student_path, teacher_path
from tropd.planning import model_shape
from tropd.planning.shape import dtype_bytes

SIZES = {
    "vocab_size": 90,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS = {
    f"{kind.__name__}-{'tied' if tied else 'untied'}": kind(**SIZES, tie_word_embeddings=tied)
    for kind in (LlamaConfig, Qwen3Config, Gemma2Config, Gemma3TextConfig)
    for tied in (True, False)
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_counts_are_those_of_the_real_model(config):
    shape = model_shape(config)
    model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.tied == config.tie_word_embeddings
    assert shape.head_parameters == model.get_output_embeddings().weight.numel() == 90 * 24
    assert shape.embedding_parameters == (0 if shape.tied else 90 * 24)
    body = sum(
        p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name and "lm_head" not in name
    )
    assert shape.body_parameters == body
    assert (shape.query_width, shape.kv_width, shape.vocab_size) == (32, 16, 90)


def test_queries_are_normalised_in_qwen3_and_not_in_llama():
    assert model_shape(CONFIGS["Qwen3Config-tied"]).query_norm
    assert not model_shape(CONFIGS["LlamaConfig-tied"]).query_norm


@pytest.mark.parametrize(("path", "layers"), [(student_path(), 3), (teacher_path(), 4)])
def test_the_shipped_pair_is_read_from_its_folder(path, layers):
    shape = model_shape(path)
    stored = (path / "model.safetensors").stat().st_size
    assert shape.num_layers == layers
    assert 0 <= stored - shape.parameters * shape.stored_bytes < 10_000  # the file's header


def test_a_token_passes_through_its_experts_only():
    config = Qwen3MoeConfig(**SIZES, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=10)
    shape = model_shape(config)
    experts = 2 * 8 * 3 * 24 * 10  # layers · experts · three matrices
    assert shape.active_parameters == shape.parameters - experts * 6 // 8
    assert shape.intermediate_size == 2 * 10
    assert "2 of 8 experts" in shape.notes[0]


@pytest.mark.parametrize("named", [True, False])
def test_the_stored_dtype_comes_from_the_configuration_or_from_the_weights(tmp_path, named):
    model = AutoModelForCausalLM.from_config(CONFIGS["LlamaConfig-untied"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    if not named:
        config = json.loads((tmp_path / "config.json").read_text())
        config.pop("dtype")
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_shape(tmp_path).stored_bytes == 2


def test_an_unknown_dtype_is_refused_by_name():
    assert [dtype_bytes(x) for x in (torch.bfloat16, "float32")] == [2, 4]
    with pytest.raises(ValueError, match="dtype is 'int3'"):
        dtype_bytes("int3")


def test_importing_planning_imports_nothing_heavy():
    code = "import sys, tropd.planning; print(*sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
