"""Two-layer random models of the families that Transformers ships and people distil, and what is found of each.

`cd tests && python -m training.zoo [family …]` finds the rows of docs/supported_models.md anew, all or some of them.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel, PrinterCallback

from training import tiny
from tropd.rollout.engine import writing
from tropd.rollout.engine.noise import OUR_LOOP, AddressedNoise, Race

PAGE = Path(__file__).parents[2] / "docs" / "supported_models.md"
_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
_SHARED = {
    **_EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    **_SHARED,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_WINDOW = {"sliding_window": 6}  # shorter than the rollouts
_GEMMA_N = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64,
    "layer_types": ["sliding_attention", "full_attention"],
    **_WINDOW,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "Apertus": {},
    "Arcee": {},
    "Bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "Bloom": {},
    "Cohere": {},
    "Cohere2": _WINDOW,
    "Ernie4_5": {},
    "Exaone4": _WINDOW,
    "FalconH1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64},
    "Gemma": {},
    "Gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0, **_WINDOW},
    "Gemma3": {"config": "Gemma3TextConfig", **_WINDOW},
    "Glm": {},
    "Glm4": {},
    "GPT2": {"model": "GPT2LMHeadModel"},
    "GPTNeoX": {},
    "GptOss": {**_EXPERTS, **_WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
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
    "Mistral": _WINDOW,
    "Mixtral": _EXPERTS | _WINDOW,
    "ModernBertDecoder": {"cls_token_id": 1, "sep_token_id": 2},
    "Mpt": {},
    "Nemotron": {},
    "Olmo": {},
    "Olmo2": {},
    "Olmo3": _WINDOW,
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 32, "dropout": 0.1},
    "Phi": {},
    "Phi3": _WINDOW,
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
    "SmolLM3": _WINDOW,
    "StableLm": {},
    "Starcoder2": _WINDOW,
    "BitNet": {},
    "DeepseekV3": _LATENT,
    "DiffLlama": {},
    "Doge": {},
    "Falcon": {"head_dim": None},
    "FalconMamba": {"state_size": 8},
    "Gemma3n": {
        "config": "Gemma3nTextConfig",
        **_GEMMA_N,
        "activation_sparsity_pattern": [0.0, 0.0],
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    },
    "Gemma4": {"config": "Gemma4TextConfig", **_GEMMA_N, "global_head_dim": 8},
    "GPTNeo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4},
    "GraniteMoeHybrid": {
        **_EXPERTS,
        **_MAMBA,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 16,
    },
    "JetMoe": {**_EXPERTS, "kv_channels": 8},
    "Laguna": _SHARED,
    "Lfm2Moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"]},
    "Lfm3": {"layer_types": ["conv", "full_attention"]},
    "Mamba": {"state_size": 8},
    "MiMoV2Flash": _SHARED,
    "NanoChat": {},
    "NemotronH": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "layers_block_type": ["mamba", "attention"],
    },
    "OlmoHybrid": _LINEAR,
    "Qwen3_5": {"config": "Qwen3_5TextConfig", **_LINEAR},
    "Zamba2": {
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "layers_block_type": ["mamba", "hybrid"],
        "use_mem_rope": True,
    },
}
"""Family → what its configuration needs beside the common sizes; `config` and `model` are classes of other names."""


def made(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family, its distributions far from flat."""
    extra = dict(FAMILIES[family])
    config = getattr(transformers, extra.pop("config", f"{family}Config"))
    model = getattr(transformers, extra.pop("model", f"{family}ForCausalLM"))
    settings = {name: value for name, value in (_SMALL | extra).items() if value is not None}
    torch.manual_seed(seed)
    built = model(config(**settings))
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return built.eval()


# ---------------------------------------------------------------------- what is found

ROWS = [{"prompt": "ab="}, {"prompt": "hi+jk+lm+no="}]
"""Of different lengths, so that the shorter one is padded on the left."""


OFF = "; a step with a cache is less than 10⁻³ nats a token from a plain pass"
"""Of families whose cached step is not quite their plain pass: scores are right, draws nearly."""


def examined(family: str, directory: Any, record: Any) -> str:
    """Train a student of the family one step with a teacher of the family; in words, how its rollouts are written.

    Scores of both, what rollouts were drawn from, and the gradient are held against logits of plain passes over single
    rows of models that tropd has never seen. `record` is asked to replace an attribute: `monkeypatch.setattr`.
    """
    drawn: dict[int, torch.Tensor] = {}
    reasons: list[str] = []
    run = Race.run

    def recorded(self: Race, scores: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        drawn.update(zip(keys.tolist(), scores.float().log_softmax(-1), strict=True))
        return run(self, scores, keys)

    record(Race, "run", recorded)
    record("tropd.rollout.engine.noise.say_why_plain", reasons.append)
    steps = tiny.Recorder()
    settings = {"rows": ROWS, "max_completion_length": 12, "router_aux_loss_coef": 0.0, "callbacks": [steps]}
    trainer = tiny.build(directory, made(family, 1), made(family, 2), "opd", **settings)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    (batch,) = trainer._buffered_inputs
    off = _check_numbers(family, batch, drawn, steps.steps[0].gradients)
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    if logged["rollout/engine"] == OUR_LOOP:
        assert not off
        return "our loop"
    how = {"": "", "lengths": ", contexts of one length at a time", "rows": ", each row by itself"}
    apart = how[writing.KNOWN[trainer.model].apart]
    return f"Transformers' loop{apart}: {reasons[0]}{OFF if off else ''}"


def _check_numbers(family: str, batch: Any, drawn: dict[int, torch.Tensor], gradients: dict[str, torch.Tensor]) -> bool:
    """Assert them; is what tokens were drawn from a little off?"""
    student, teacher = made(family, 1), made(family, 2)
    signals, done, terms, off, gaps = batch.signals, 0, [], False, []
    for rollout in batch.rollouts:
        here = slice(done, done + len(rollout.response))
        done = here.stop
        ids = torch.tensor(rollout.response)[:, None]
        whole = tiny.plain_logps(student, rollout.prompt_ids, rollout.response)
        ours = whole.gather(-1, ids)[:, 0]
        theirs = tiny.plain_logp(teacher, rollout.prompt_ids, rollout.response).detach()
        _close(signals.rollout_logp[here], ours, 1e-5)
        _close(signals.teacher_logp[here], theirs, 1e-5)
        keys = AddressedNoise(7, 0, 2, [(rollout.row, 0)]).keys(len(ids))[0].tolist()
        drawn_from = torch.stack([drawn[key] for key in keys])
        off |= bool((drawn_from - whole).abs().max() > 5e-5)  # tokens of -30 nats as well
        gaps.append((drawn_from.gather(-1, ids)[:, 0] - ours).abs())
        terms.append((theirs - ours).detach() * ours)
    expected = tiny.gradients_of(student, -torch.cat(terms).mean())
    scale = tiny.largest(expected)
    assert max(float((gradients[name] - expected[name]).abs().max()) for name in gradients) < 2e-5 * scale
    assert torch.cat(gaps).mean() < (writing.SLACK if off else 1e-5)
    return off


def _close(found: torch.Tensor, plain: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(found.double(), plain.detach(), rtol=0, atol=atol)


def listed() -> dict[str, str]:
    """The families of docs/supported_models.md and what the page says of each."""
    return dict(re.findall(r"^\| (\w+) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[1:])


def write(found: dict[str, str]) -> None:
    """Write the page's rows; those of families that were not looked at stay."""
    rows = listed() | found
    text = PAGE.read_text(encoding="utf-8")
    begin, end = text.index("| family |"), text.rindex("|\n") + 2
    lines = [f"| {family} | {rows[family]} |\n" for family in sorted(rows, key=str.lower)]
    table = "| family | rollouts are written by |\n|---|---|\n" + "".join(lines)
    PAGE.write_text(text[:begin] + table + text[end:], encoding="utf-8")


def main(families: list[str]) -> None:
    for family in families or FAMILIES:
        with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
            verdict = examined(family, directory, patch.setattr)
        print(f"{family}: {verdict}", flush=True)
        write({family: verdict})


if __name__ == "__main__":
    main(sys.argv[1:])
