"""What each model of the family is, and how it is trained; the seed of a build is added to every mixture's."""

from transformers import Qwen3Config

from tools.proving_ground.batches import Mixture
from tools.proving_ground.learning import Plan
from tools.proving_ground.tokenizer import MAX_LENGTH, build_tokenizer
from tropd.proving_ground.domains import DOMAINS
from tropd.proving_ground.family import GENERALIST, SPECIALISTS, STUDENT

TEACHER_AT_LEAST = 0.95
"""Greedy accuracy wanted of a teacher on each of its domains."""
STUDENT_BAND = (0.2, 0.5)
"""Greedy accuracy wanted of a student on each domain."""

_ALIKE = tuple((name, 1.0) for name in DOMAINS)


def generalist_plan(seed: int) -> Plan:
    """From random weights, easy problems first."""
    return Plan(GENERALIST, Mixture(_ALIKE, seed, easy_steps=2000), steps=7000, learning_rate=3e-3)


def specialist_plan(domain: str, seed: int) -> Plan:
    """From the generalist's weights, one domain alone."""
    mixture = Mixture(((domain, 1.0),), seed + 1)
    return Plan(SPECIALISTS[domain], mixture, steps=500, learning_rate=1e-3, warmup_steps=20)


def student_plan(seed: int) -> Plan:
    """From random weights, until every domain is inside the band; easy problems first."""
    mixture = Mixture(_ALIKE, seed + 2, easy_steps=1000)
    return Plan(STUDENT, mixture, steps=3000, learning_rate=2e-3, enough=0.25, steps_between_evaluations=100)


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
