"""A model without its weights: tokenizer, configuration, generation settings."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from .folder import is_local, near_folder, read_by_transformers

GENERATION_CONFIG = "generation_config.json"

BOUNDS = ("final_logit_softcapping", "logits_soft_cap")
"""Of the logits; 0 is none."""
SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling", *BOUNDS)


@dataclass(frozen=True)
class ModelFiles:
    """A model's small files; the folder or Hub name is for sentences."""

    name: str
    tokenizer: Any
    config: Any
    generation_config: Any

    @property
    def head_rows(self) -> int:
        """Rows of the output layer: the token ids that the model can score."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a response: the generation settings' and the tokenizer's, as TRL collects them."""
        declared = self.generation_config.eos_token_id
        ids = [] if declared is None else list(declared) if isinstance(declared, (list, tuple)) else [declared]
        own = self.tokenizer.eos_token_id
        return sorted({*ids, *([] if own is None else [own])})

    @property
    def context_length(self) -> int | None:
        """Positions that the model was made for; see `context_length`."""
        return context_length(self.config)


def context_length(config: Any) -> int | None:
    """Positions that a model was made for, RoPE scaling included; `None` where its configuration is silent."""
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings")
    if rope.get("rope_type", rope.get("type")) == "dynamic":  # stretches beyond the positions of the configuration
        original = original or limit
    if limit and rope.get("factor") and original:
        return max(int(limit), int(rope["factor"] * original))
    return int(limit) if limit else None


def steady_length(config: Any, alone: bool = False) -> int | None:
    """Tokens up to which the frequencies of a rotary embedding do not depend on the longest row that is read together.

    Args:
        config: of the model.
        alone: is each row read by itself? Then `longrope` depends on nothing else; `dynamic` does on what was read
            before.

    Returns:
        `None` where they never do.
    """
    config = config.get_text_config()
    found = []
    for rope in rotary_settings(config):
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "dynamic":
            found.append(getattr(config, "max_position_embeddings", None))
        elif kind == "longrope" and not alone:
            own = getattr(config, "original_max_position_embeddings", None)
            found.append(rope.get("original_max_position_embeddings") or own)
    return min(map(int, filter(None, found)), default=None)


def rotary_settings(config: Any) -> list[dict[str, Any]]:
    """A text model's rotary embedding, or one for each kind of its layers."""
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]


def read_model_files(name: str | Path, *, role: str = "model", trust_remote_code: bool = False) -> ModelFiles:
    """The small files of a folder or Hub name; no weights are read.

    Raises:
        ValueError: the model is neither local nor on the Hub, or its generation settings cannot be read.
    """
    name = str(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    start = f"{role} is {name!r}"
    with read_by_transformers(start, "config.json"), explained(name, role):
        config = AutoConfig.from_pretrained(name, **options)
        _check_scales(start, config.get_text_config())
    with read_by_transformers(start, "tokenizer files"), explained(name, role):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    with read_by_transformers(start, GENERATION_CONFIG), explained(name, role):
        generation_config = _generation_config(name, role, config)
        _check_ends(start, generation_config.eos_token_id)
    return ModelFiles(name, tokenizer, config, generation_config)


def _check_scales(start: str, config: Any) -> None:
    """Factors and bounds of the logits, which the library does not look at where the architecture declares none."""
    for name in SCALES:
        value = getattr(config, name, None)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (is_number and (value != 0 or name in BOUNDS)):
            raise ValueError(
                f"{start}, whose config.json has {name}: {value!r:.60}, which cannot scale logits. Copy or "
                "download that file again."
            )


def _check_ends(start: str, value: Any) -> None:
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if value is not None and not (type(one) is int and 0 <= one < 2**31):
            raise ValueError(
                f"{start}, whose {GENERATION_CONFIG} has eos_token_id: {value!r:.60}, which is not a token id. Correct "
                "it there: a number, or a list of numbers."
            )


@contextmanager
def explained(name: str, role: str) -> Iterator[None]:
    """Turn Transformers' errors about a model that it cannot find into a clear message; disk errors propagate."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        if is_local(name):
            raise ValueError(
                f"{role} is {name!r}, whose files Transformers cannot read: {_first_line(error)}"
            ) from error
        near = near_folder(Path(name))
        hint = f" Did you mean {near!r}?" if near is not None else ""
        raise ValueError(
            f"{role} is {name!r}, which is not a model folder here and cannot be loaded from the Hub: "
            f"{_first_line(error)}{hint}"
        ) from error


def _generation_config(name: str, role: str, config: Any) -> GenerationConfig:
    """The generation settings; a model without the file has them in its configuration, as Transformers reads it."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError as error:
        if not _has(name, GENERATION_CONFIG):
            return GenerationConfig.from_model_config(config)
        raise ValueError(
            f"{role} is {name!r}, whose {GENERATION_CONFIG} cannot be read: {_first_line(error)} Copy or download that "
            "file again."
        ) from error


def _has(name: str, file: str) -> bool:
    """Is the file in the folder, or among what was fetched from the Hub?"""
    if is_local(name):
        return (Path(name) / file).exists()
    return isinstance(try_to_load_from_cache(name, file), str)


def _first_line(error: OSError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
