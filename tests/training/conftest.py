"""A student and a teacher that disagree, shared by the trainer's tests; tests train copies of them."""

import pytest
import torch

from training import tiny


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """Two threads spend most of their time meeting each other over tensors as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def student():
    return tiny.llama(seed=0)


@pytest.fixture(scope="session")
def teacher():
    return tiny.qwen(seed=1, width=24)
