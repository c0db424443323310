"""Configurations of published models, for planning without their files: sizes as their `config.json` has them."""

from pathlib import Path
from typing import Any

from ..suggestions import did_you_mean
from ..teacher.served.address import is_served
from .shape import ModelShape, model_shape, served_shape

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
)
KNOWN: dict[str, tuple[str, tuple[int, ...]]] = {
    "DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", (151936, 1536, 8960, 28, 12, 2, 128, False)),
    "Skywork-OR1-Math-7B": ("qwen2", (152064, 3584, 18944, 28, 28, 4, 128, False)),
    "Skywork-OR1-7B": ("qwen2", (152064, 3584, 18944, 28, 28, 4, 128, False)),
    "Qwen3-1.7B": ("qwen3", (151936, 2048, 6144, 28, 16, 8, 128, True)),
    "Qwen3-4B": ("qwen3", (151936, 2560, 9728, 36, 32, 8, 128, True)),
    "Llama-3.1-8B": ("llama", (128256, 4096, 14336, 32, 32, 8, 128, False)),
    "Llama-3.1-70B": ("llama", (128256, 8192, 28672, 80, 64, 8, 128, False)),
}
"""Model name → model type and `SIZES`; all are stored in bfloat16."""

ALIASES = {"Qwen3-SFT-1.7B": "Qwen3-1.7B", "Qwen3-Nemotron-4B": "Qwen3-4B"}
"""Checkpoints of the paper whose own files are not public, and the architecture that their names say."""


def shape_by_name(name: str) -> ModelShape:
    """The shape of a model folder, of a model in `KNOWN` (by the last part of its name), of a name of the Hub, or of
    what lies behind a server.
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
        return AutoConfig.for_model(model_type, dtype="bfloat16", **dict(zip(SIZES, sizes, strict=True)))
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        names = [*KNOWN, *ALIASES]
        raise ValueError(
            f"{name!r} is not a model folder, and its configuration could not be fetched from the Hub."
            f"{did_you_mean(short, names)} Known without files: {', '.join(names)}."
        ) from error
