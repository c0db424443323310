"""Shapes and setups small enough to reckon by hand, and one real configuration."""

from dataclasses import replace

import pytest

from tropd.planning.setup import Setup, Workload
from tropd.planning.shape import ModelShape

TINY = ModelShape(
    name="tiny",
    parameters=1000,
    active_parameters=1000,
    head_parameters=100,
    embedding_parameters=100,
    num_layers=2,
    hidden_size=10,
    intermediate_size=20,
    num_heads=2,
    num_kv_heads=1,
    head_dim=5,
    vocab_size=10,
)
"""A body of 800 parameters, a head and an embedding of 100 each."""

WORK = Workload(
    rollout_rows=4,
    update_rows=4,
    micro_rows=2,
    teacher_rows=2,
    num_generations=2,
    num_iterations=1,
    prompt_tokens=4.0,
    response_tokens=6.0,
    longest_prompt=4,
    longest_response=8,
)


@pytest.fixture
def setup() -> Setup:
    """A float32 student of 1000 parameters and a teacher of 3000, four rows in micro-batches of two."""
    teacher = replace(TINY, parameters=3000, active_parameters=3000)
    return Setup(student=TINY, teacher=teacher, work=WORK, trainable=1000, checkpointing=False)


@pytest.fixture
def work() -> Workload:
    return WORK


@pytest.fixture
def config(tmp_path):
    """Makes a `TrOPDConfig` for this machine's CPU."""
    from tropd import TrOPDConfig

    def make(**changes):
        settings = {"use_cpu": True, "bf16": False, "max_steps": 10, "max_completion_length": 64, "report_to": "none"}
        return TrOPDConfig(str(tmp_path / "output"), **{**settings, **changes})

    return make
