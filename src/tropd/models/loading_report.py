"""Which weights Transformers would find missing in a folder, without reading any.

The tensors that the safetensors headers name are made on PyTorch's meta device, where they have a shape and no content,
and go through Transformers' own loading. It knows every renaming, tied weight and merged expert, so nothing of that is
repeated here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig

from .folder import read_by_transformers, read_shapes
from .hidden_states import language_model_class


class LoadingReport(NamedTuple):
    """Where weights and configuration disagree: tensors that no weight becomes, and sentences about others' shapes."""

    missing: list[str]
    mismatched: list[str]


def loading_report(folder: Path, files: Sequence[Path], start: str, trust_remote_code: bool = False) -> LoadingReport:
    """Load the shapes of `files` into the model of the folder's config.json; milliseconds, whatever the size."""
    with read_by_transformers(start, "config.json"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        return LoadingReport([], [])  # each method stores weights under names of its own
    shapes = {name: shape for file in files for name, shape in read_shapes(file, start).items()}
    with read_by_transformers(start, "config.json"), torch.device("meta"):
        built = language_model_class(config, start).from_config(config, trust_remote_code=trust_remote_code)
    try:
        with read_by_transformers(start, "config.json", passing=RuntimeError):
            _, found = type(built).from_pretrained(
                None,
                config=built.config,
                state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,  # they are reported
                output_loading_info=True,
            )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{start}, whose weights do not fit its config.json: {reason} Copy or download config.json and the weights "
            "again from the same source."
        ) from error
    mismatched = [
        f"{name} is {list(stored)} and should be {list(expected)}"
        for name, stored, expected in sorted(found["mismatched_keys"])
    ]
    return LoadingReport(sorted(found["missing_keys"]), mismatched)
