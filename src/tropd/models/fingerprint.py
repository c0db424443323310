"""A short fingerprint of a model's weights, to detect a model of the same name with different weights."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SAMPLED = 64
"""Entries of each weight that are read, evenly spread."""


def of_weights(model: torch.nn.Module) -> str:
    """Of a sample of every parameter and buffer."""
    return of_tensors(model.state_dict())


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of a sample of each, with its name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_sample(tensor).tobytes())
    return digest.hexdigest()[:32]


def _sample(tensor: Tensor) -> Any:
    flat = tensor.detach().reshape(-1)
    places = torch.linspace(0, max(len(flat) - 1, 0), min(SAMPLED, len(flat)), device=flat.device).long()
    # float32 numbers no entries beyond 2^24, and rounds the last of such a weight up.
    return flat[places.clamp_max(max(len(flat) - 1, 0))].double().cpu().numpy()
