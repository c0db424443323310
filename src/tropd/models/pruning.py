"""A smaller student from a teacher: the same model with some layers removed."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from .files import explained, read_model_files
from .hidden_states import language_model_class

LAYER_LISTS = ("layers", "h")
"""What decoders call their layers; `h` is GPT-2's."""


@dataclass(frozen=True)
class Pruned:
    """What `write_student` wrote; tied weights count once."""

    layers_before: int
    kept: list[int]
    parameters_before: int
    parameters_after: int
    dtype: str


def parse_layers(text: str) -> list[int]:
    """Layer numbers of a list with ranges, as they are typed.

    >>> parse_layers("0-3,6")
    [0, 1, 2, 3, 6]
    """
    layers: list[int] = []
    for part in text.split(",") if text.strip() else ():
        first, dash, last = part.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise ValueError(
                f"keep_layers is {text!r}, where {part.strip()!r} is neither a layer nor a range of layers. Write it "
                "like 0,1,4 or 0-3,6; layers count from 0."
            )
        if dash and int(last) < int(first):
            raise ValueError(f"keep_layers is {text!r}, where the range {part.strip()} ends before it starts.")
        layers += range(int(first), int(last if dash else first) + 1)
    return layers


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()  # digits of other scripts are decimal, too


def check_layers(keep: Sequence[int], num_layers: int) -> None:
    """Refuse a choice of layers that is no smaller model of the same order."""
    start = f"keep_layers is {','.join(map(str, keep))}"
    if not keep:
        raise ValueError(f"keep_layers is empty; keep at least one of the teacher's layers 0 to {num_layers - 1}.")
    beyond = [layer for layer in keep if not 0 <= layer < num_layers]
    if beyond:
        raise ValueError(f"{start}, but the teacher has layers 0 to {num_layers - 1}; there is no layer {beyond[0]}.")
    if len(set(keep)) < len(keep):
        twice = next(layer for place, layer in enumerate(keep) if layer in keep[:place])
        raise ValueError(f"{start}, which names layer {twice} twice. Name each layer once.")
    if list(keep) != sorted(keep):
        raise ValueError(
            f"{start}, which would change the order of the layers, but each layer reads the output of the one before "
            f"it. Write {','.join(map(str, sorted(keep)))}."
        )
    if len(keep) == num_layers:
        raise ValueError(f"{start}: all layers, which is the teacher itself. Remove at least one.")


def write_student(
    teacher: str | Path, keep: Sequence[int], out: str | Path, *, trust_remote_code: bool = False
) -> Pruned:
    """Write the teacher with only the layers `keep` as a model folder; the folder appears when it is whole.

    Weights keep their dtype. The tokenizer with its chat template and the generation settings come along.
    """
    out = Path(out)
    check_out(out)
    files = read_model_files(teacher, role="teacher", trust_remote_code=trust_remote_code)
    if language_model_class(files.config, f"teacher is {files.name!r}") is not AutoModelForCausalLM:
        raise ValueError(
            f"teacher is {files.name!r}, a {type(files.config).__name__}, which also reads images or sound: layers can "
            "only be removed from a text model. Give a checkpoint of its language model, such as its "
            "family's …ForCausalLM."
        )
    config = files.config.get_text_config(decoder=True)
    if hasattr(config, "num_hidden_layers"):
        check_layers(keep, config.num_hidden_layers)  # before the weights are read
    with explained(files.name, "teacher"):
        model = AutoModelForCausalLM.from_pretrained(files.name, dtype="auto", trust_remote_code=trust_remote_code)
    num_layers, before = len(decoder_layers(model)), model.num_parameters()
    keep_layers(model, keep)
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    files.tokenizer.save_pretrained(aside)
    os.replace(aside, out)
    return Pruned(num_layers, list(keep), before, model.num_parameters(), str(model.dtype).removeprefix("torch."))


def check_out(out: Path) -> None:
    """Refuse a place where a folder's files would be lost or mixed with others."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"out is {str(out)!r}, which already exists. Choose another folder, or remove it first.")


def keep_layers(model: PreTrainedModel, keep: Sequence[int]) -> None:
    """Take all layers but `keep` out of `model`, its configuration included.

    Raises:
        ValueError: see `check_layers`; or the model that the new configuration describes is not the one that is left,
            or cannot be built, or does not write.
    """
    layers = decoder_layers(model)
    check_layers(keep, len(layers))
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError("the teacher is quantised; remove the layers from the unquantised model.")
    for name, value in _per_layer_settings(config, len(layers), keep).items():
        setattr(config, name, value)
    config.num_hidden_layers = len(keep)
    decoder = model.get_decoder()
    kept = nn.ModuleList([layers[layer] for layer in keep])
    setattr(decoder, next(name for name in LAYER_LISTS if hasattr(decoder, name)), kept)
    for position, layer in enumerate(kept):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = position  # type: ignore[assignment]  # the attention's place in the key-value cache
    _check_rebuilt(model)
    _check_writes(model)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of a model's decoder layers."""
    decoder = model.get_decoder()
    layers = next((getattr(decoder, name) for name in LAYER_LISTS if hasattr(decoder, name)), None)
    declared = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != declared:
        raise ValueError(
            f"the teacher is a {type(model).__name__}, whose layers were not found: its decoder has no list "
            f"{' or '.join(LAYER_LISTS)} of num_hidden_layers layers. Use a different teacher."
        )
    return layers


def _per_layer_settings(config: Any, num_layers: int, keep: Sequence[int]) -> dict[str, list]:
    """The configuration's lists with one entry a layer (`layer_types`), or of layer numbers, for the kept layers."""
    settings = {}
    for name, value in config.to_dict().items():
        if "layer" not in name or not isinstance(value, list | tuple):
            continue
        if name in ("mlp_only_layers", "moe_layers"):
            settings[name] = [position for position, layer in enumerate(keep) if layer in value]
        elif len(value) == num_layers:
            settings[name] = [value[layer] for layer in keep]
    return settings


def _check_rebuilt(model: PreTrainedModel) -> None:
    """Compare what is left with what Transformers builds from the new configuration.

    Some models decide by a layer's number what it is (dense or experts, sliding window or not), and some hold weights
    for all layers elsewhere: loaded again, they would be another model, or none.
    """
    name = type(model).__name__
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            rebuilt = type(model)(config)
    except Exception as error:  # configurations and models refuse in as many ways as there are
        raise ValueError(_unusable(name, "be described", error)) from error
    found, expected = _facts(model), _facts(rebuilt)
    for what in sorted(found.keys() | expected.keys()):
        if found.get(what) != expected.get(what):
            raise ValueError(
                f"a {name} depends on the numbers of its layers: {what} of the student is {found.get(what)}, but would "
                f"load as {expected.get(what)}. Keep different layers (consecutive first layers may work), or use a "
                "different teacher."
            )


@torch.no_grad()
def _check_writes(model: PreTrainedModel) -> None:
    """Read two tokens and one more behind them: some hybrids have no cache without a layer of attention."""
    ids = torch.tensor([[0, 1]], device=model.device)
    try:
        cache = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
        if cache is not None:
            model(input_ids=ids[:, 1:], past_key_values=cache, use_cache=True)
    except Exception as error:
        raise ValueError(_unusable(type(model).__name__, "write", error)) from error


def _unusable(name: str, what: str, error: Exception) -> str:
    why = " ".join(str(error).split())
    return (
        f"keep_layers leaves a {name} that cannot {what} ({type(error).__name__}: {why:.300}). Keep a layer of each "
        "kind (layer_types in the teacher's config.json names them), or use a different teacher."
    )


def _facts(model: PreTrainedModel) -> dict[str, Any]:
    """Shapes of all weights, and every plain value that a module of a layer was built with."""
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    values = {
        f"layer {place}.{name}": value
        for place, module in decoder_layers(model).named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and isinstance(value, bool | int | float | str)
    }
    return shapes | values
