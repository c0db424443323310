"""What is known of a model without its weights: tokenizer, configuration, generation settings."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig


@dataclass(frozen=True)
class ModelFiles:
    """A model's small files.

    Attributes:
        name: folder or Hub name, for sentences.
        tokenizer: its tokenizer.
        config: its configuration.
        generation_config: its generation settings.
    """

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
        """Positions that the model was made for, RoPE scaling included; `None` where the configuration is silent."""
        config = self.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        rope = getattr(config, "rope_parameters", None) or {}
        if limit and rope.get("factor") and rope.get("original_max_position_embeddings"):
            return max(int(limit), int(rope["factor"] * rope["original_max_position_embeddings"]))
        return int(limit) if limit else None


def read_model_files(name: str, *, trust_remote_code: bool = False) -> ModelFiles:
    """The small files of a folder or Hub name; no weights are read."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **options)
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    try:
        generation = GenerationConfig.from_pretrained(name)
    except OSError:  # a model without the file has its settings in its configuration, as Transformers reads it
        generation = GenerationConfig.from_model_config(config)
    return ModelFiles(name, tokenizer, config, generation)
