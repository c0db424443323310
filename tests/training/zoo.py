"""Two-layer random models of the families that Transformers ships and people distil."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "Apertus": {},
    "Arcee": {},
    "Bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "Bloom": {},
    "Cohere": {},
    "Cohere2": {},
    "Ernie4_5": {},
    "Exaone4": {},
    "FalconH1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64},
    "Gemma": {},
    "Gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
    "Gemma3": {"config": "Gemma3TextConfig"},
    "Glm": {},
    "Glm4": {},
    "GPT2": {"model": "GPT2LMHeadModel"},
    "GPTNeoX": {},
    "GptOss": {**_EXPERTS, "layer_types": ["sliding_attention", "full_attention"]},
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 2.0, "attention_dropout": 0.1},
    "GraniteMoe": _EXPERTS,
    "Helium": {},
    "HunYuanDenseV1": {},
    "Jamba": {**_EXPERTS, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Llama": {},
    "Llama4": {
        "config": "Llama4TextConfig",
        "intermediate_size_mlp": 32,
        **_EXPERTS,
        "layer_types": ["full_attention", "full_attention"],
    },
    "Mamba2": {"num_heads": 8, "n_groups": 1, "state_size": 8},
    "MiniMax": _EXPERTS,
    "Mistral": {},
    "Mixtral": _EXPERTS,
    "ModernBertDecoder": {"cls_token_id": 1, "sep_token_id": 2},
    "Mpt": {},
    "Nemotron": {},
    "Olmo": {},
    "Olmo2": {},
    "Olmo3": {},
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 32, "dropout": 0.1},
    "Phi": {},
    "Phi3": {},
    "Qwen2": {},
    "Qwen3": {},
    "Qwen3Moe": _EXPERTS,
    "Qwen3Next": {
        **_EXPERTS,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "RecurrentGemma": {"block_types": ["recurrent", "attention"], "logits_soft_cap": 2.0},
    "SeedOss": {"attention_dropout": 0.1, "residual_dropout": 0.1},
    "SmolLM3": {},
    "StableLm": {},
    "Starcoder2": {},
}
"""Family → what its configuration needs beside the common sizes; `config` and `model` are classes of other names."""


def made(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family, its distributions far from flat."""
    extra = dict(FAMILIES[family])
    config = getattr(transformers, extra.pop("config", f"{family}Config"))
    model = getattr(transformers, extra.pop("model", f"{family}ForCausalLM"))
    torch.manual_seed(seed)
    built = model(config(**_SMALL | extra))
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return built.eval()
