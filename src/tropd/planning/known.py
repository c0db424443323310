"""Configurations of published models, for planning without their files: sizes as their `config.json` has them."""

from pathlib import Path
from typing import Any

from ..suggestions import did_you_mean
from ..teacher.served.address import is_served
from .shape import ModelShape, model_shape, served_shape

_QWEN2_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}

KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "DeepSeek-R1-Distill-Qwen-1.5B": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
        },
    ),
    "Skywork-OR1-Math-7B": ("qwen2", _QWEN2_7B),
    "Skywork-OR1-7B": ("qwen2", _QWEN2_7B),
    "Qwen3-1.7B": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-4B": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-3.1-8B": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
    "Llama-3.1-70B": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}
"""Model name → model type and sizes; all are stored in bfloat16."""

ALIASES = {"Qwen3-SFT-1.7B": "Qwen3-1.7B", "Qwen3-Nemotron-4B": "Qwen3-4B"}
"""Checkpoints of the paper whose own files are not public, and the architecture that their names say."""


def shape_by_name(name: str) -> ModelShape:
    """The shape of a model folder, of a model in `KNOWN` (by the last part of its name), of a name of the Hub, or of
    what lies behind a server.

    Raises:
        ValueError: neither here, nor known, nor to be had.
    """
    if is_served(name):
        return served_shape(name)
    return model_shape(name if Path(name).is_dir() else config_by_name(name))


def config_by_name(name: str) -> Any:
    """The configuration of a model; as `shape_by_name`."""
    from transformers import AutoConfig

    short = name.rsplit("/", maxsplit=1)[-1]
    known = ALIASES.get(short, short)
    if known in KNOWN and not Path(name).is_dir():
        model_type, sizes = KNOWN[known]
        return AutoConfig.for_model(model_type, dtype="bfloat16", **sizes)
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        names = [*KNOWN, *ALIASES]
        raise ValueError(
            f"{name!r} is no model folder, and its configuration could not be fetched from the Hub."
            f"{did_you_mean(short, names)} Known without files: {', '.join(names)}."
        ) from error
