"""The family of models: their architectures, and the folders in which they are shipped."""

from importlib.resources import files
from pathlib import Path

from transformers import Qwen3Config

from tropd.proving_ground.tokenizer import MAX_LENGTH, build_tokenizer

GENERALIST, STUDENT, PRUNED = "generalist", "student", "pruned"
SPECIALISTS = {domain: f"specialist-{domain}" for domain in ("mathematics", "code", "instructions")}
"""The specialist teacher of each domain."""
MODELS = (GENERALIST, *SPECIALISTS.values(), STUDENT, PRUNED)


def family_path() -> Path:
    """Folder of the shipped models and of `BUILD.json`, which says how they came about."""
    return Path(str(files("tropd.proving_ground") / "models" / "family"))


def model_path(name: str) -> Path:
    """Folder of a shipped model, for `from_pretrained`."""
    if name not in MODELS:
        raise ValueError(f"name is {name!r}; no such model is shipped. Choose {', '.join(MODELS)}.")
    folder = family_path() / name
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"The shipped {name} is not in {folder}; this installation left out the package data. "
            "Reinstall tropd, or train the family with: python -m tropd.proving_ground.build --out DIR"
        )
    return folder


def teacher_config() -> Qwen3Config:
    """Four layers of width 128, about 0.88 million parameters."""
    return _config(num_layers=4)


def student_config() -> Qwen3Config:
    """Three layers of width 128, about 0.67 million parameters: the pruned student's shape, from another origin."""
    return _config(num_layers=3)


def _config(num_layers: int, width: int = 128, num_heads: int = 8) -> Qwen3Config:
    tokenizer = build_tokenizer()
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=width // num_heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
