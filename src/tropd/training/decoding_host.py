"""The private ground of Transformers that the decoding loop (`tropd.rollout`) stands on: every internal that it calls,
answers or reads, in one place.

Classes that it imports are not here: one that is gone is named by the import.
"""

import inspect
from typing import Any

import transformers

CALLED: dict[str, tuple[str, ...]] = {
    "generation.GenerationMixin.prepare_inputs_for_generation": (),
    "generation.GenerationMixin._optimize_model_for_decode": (),
    "generation.GenerationConfig.get_generation_mode": (),
    "configuration_utils.PreTrainedConfig.get_text_config": ("decoder",),
    "cache_utils.Cache.__init__": ("layers",),
    "cache_utils.DynamicCache.__init__": ("config",),
}
"""What we call, or compare a model's own with, and the parameters that we pass by name."""

ANSWERED: dict[str, tuple[str, ...]] = {
    "lazy_initialization": ("key_states", "value_states"),
    "update": ("key_states", "value_states", "args", "kwargs"),
    "get_seq_length": (),
    "get_max_length": (),
    "get_mask_sizes": ("query_length",),
}
"""Methods of `SlotLayer` that models and masks call as those of a `CacheLayerMixin`, with all that they are given."""

READ: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cache_utils.DynamicCache": ({}, ("layers", "offloading")),
    "cache_utils.DynamicLayer": ({}, ("keys", "values", "is_initialized", "is_sliding")),
    "cache_utils.DynamicSlidingWindowLayer": (
        {"sliding_window": 2},
        ("keys", "values", "is_initialized", "is_sliding", "sliding_window"),
    ),
    "generation.GenerationConfig": ({}, ("max_length", "prefill_chunk_size", "return_dict_in_generate")),
    "generation.logits_process.RepetitionPenaltyLogitsProcessor": ({"penalty": 1.5}, ("prompt_ignore_length",)),
}
"""Attributes that we read of objects; with what such an object is made."""

PREPARED = ("_pad_token_tensor", "_eos_token_tensor")
"""Attributes that `generate` sets on its settings, and we read."""

GIVEN = ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
"""Inputs of the model that `generate` hands over under these names; others are left to Transformers' own loop."""


def check_decoding() -> None:
    """Refuse a Transformers whose internals have moved from under the decoding loop.

    Raises:
        RuntimeError: with what moved.
    """
    for path, expected in CALLED.items():
        found = _parameters(path)
        missing = [name for name in expected if name not in found]
        if missing:
            raise _moved(f"{path} no longer takes {', '.join(missing)}")
    _check_layers("cache_utils.CacheLayerMixin")
    for path, (options, names) in READ.items():
        made = _found(path)(**options)
        for name in names:
            if not hasattr(made, name):
                raise _moved(f"{path} has no {name}")
    _check_generate("generation.GenerationMixin")


def _check_generate(path: str) -> None:
    """Does `generate`'s module name what we read of its settings and of the model's inputs?"""
    source = inspect.getsource(inspect.getmodule(_found(path)))  # type: ignore[arg-type]
    for sought, name in [(f".{name} = ", name) for name in PREPARED] + [(f'"{name}"', name) for name in GIVEN]:
        if sought not in source:
            raise _moved(f"{path} no longer sets {name}")


def _check_layers(path: str) -> None:
    """Is a layer of a cache asked for nothing but what ours answers?"""
    for name, expected in ANSWERED.items():
        found = _parameters(f"{path}.{name}")[1:]
        if found != expected:
            raise _moved(f"{path}.{name} takes {found} instead of {expected}")
    unanswered = sorted(_found(path).__abstractmethods__ - ANSWERED.keys())
    if unanswered:
        raise _moved(f"{path} asks for {', '.join(unanswered)}")


def _parameters(path: str) -> tuple[str, ...]:
    return tuple(inspect.signature(inspect.unwrap(_found(path))).parameters)


def _found(path: str) -> Any:
    found: Any = transformers
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise _moved(f"{path} is gone")
    return found


def _moved(what: str) -> RuntimeError:
    return RuntimeError(
        f"Transformers' {what}, which tropd's decoding loop relies on (Transformers 5.17). Install "
        "transformers>=5.17,<6, or a newer tropd."
    )
