"""Where a Transformers model meets the objective: its hidden states and its output layer, inside its own forward.

Vocabulary-wide work must run inside the model's forward, so that DDP sees it, FSDP2 has gathered the parameters and
autocast is in force; `expose_hidden_states` adds that door to a model and leaves its ordinary forward alone.
"""

import functools
import logging
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)

from ..objective.head.layer import Head
from .files import rotary_settings

logger = logging.getLogger(__name__)

OnHidden = Callable[[Tensor, Head], Any]
"""Receives the last hidden states and the head; what it returns is what the model's forward returns.

The states are [B, L, H], or of several groups [Σ B·L, H]."""


def expose_hidden_states(model: PreTrainedModel) -> None:
    """Let `model(..., on_hidden=f)` return f(hidden states, head) instead of logits. Doing it twice does nothing.

    `input_ids` and `attention_mask` may then be tuples, of groups that are read one after another.
    """
    if getattr(model, "_tropd_exposes_hidden", False):
        return
    ordinary_forward = _unbound(model.forward)

    # The signature is kept because `generate` validates its arguments against it.
    @functools.wraps(type(model).forward)
    def forward(self, *args, on_hidden: OnHidden | None = None, **kwargs):
        if on_hidden is None:
            return ordinary_forward(self, *args, **kwargs)
        hidden, head = _states(self, ordinary_forward, *args, **kwargs), head_of(self)
        device = hidden.device.type
        # In the dtype in which the model itself would project.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
        bias = None if head.bias is None else head.bias.to(dtype)
        hidden, head = hidden.to(head.weight.device, dtype), replace(head, weight=head.weight.to(dtype), bias=bias)
        with torch.autocast(device, enabled=False):
            return on_hidden(hidden, head)

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]
    model._tropd_exposes_hidden = True  # type: ignore[assignment]
    model._tropd_by_output_layer = False  # type: ignore[assignment]


def read_output_layer(model: PreTrainedModel, by_output_layer: bool) -> None:
    """Let a model expose what its own forward hands to its output layer, or else the last states of its base model."""
    model._tropd_by_output_layer = by_output_layer  # type: ignore[assignment]


def _states(
    model: Any, ordinary_forward: Callable, input_ids: Any, attention_mask: Any = None, **kwargs: Any
) -> Tensor:
    """Last states of one tensor of ids [B, L, H], or of several [Σ B·L, H]."""
    states, groups = [], [(input_ids, attention_mask)]
    if isinstance(input_ids, tuple):
        groups = list(zip(input_ids, attention_mask, strict=True))
    for ids, mask in groups:
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False, **kwargs}
        if model._tropd_by_output_layer:
            states.append(_before_output_layer(model, ordinary_forward, inputs))
        else:
            states.append(model.base_model(**inputs).last_hidden_state)
    return states[0] if len(states) == 1 else torch.cat([part.flatten(0, 1) for part in states])


def _before_output_layer(model: Any, ordinary_forward: Callable, inputs: dict[str, Any]) -> Tensor:
    """What the model's own forward hands to its output layer."""
    handed = []

    def keep(hidden: Tensor) -> Tensor:
        handed.append(hidden)
        return hidden  # no logits: nothing of the vocabulary's size is made

    with replaced(model.get_output_embeddings(), "forward", keep):
        ordinary_forward(model, **inputs)
    if len(handed) != 1:
        raise AttributeError(f"the output layer is used {len(handed)} times in a forward pass")
    return handed[0]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute of an object or a module is another; afterwards it is as before, or inherited again.

    >>> table = types.SimpleNamespace(rows=2)
    >>> with replaced(table, "rows", 3), replaced(table, "columns", 4):
    ...     print(table)
    namespace(rows=3, columns=4)
    >>> print(table)
    namespace(rows=2)
    """
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        for there, old in before.items():
            setattr(owner, there, old)


def _unbound(method: Callable) -> Callable:
    """A method as a function of its model, so that a deep copy of the model computes with its own weights."""
    return getattr(method, "__func__", lambda _, *args, **kwargs: method(*args, **kwargs))


def rotates_by_length(model: PreTrainedModel) -> bool:
    """Do the frequencies of the rotary embedding depend on the longest row read together?

    Then keys that a cache keeps, and rows of another batch, have other ones than the model gives them elsewhere.
    """
    ropes = rotary_settings(model.config.get_text_config())
    return any(rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope") for rope in ropes)


def language_model_class(config: Any, start: str) -> Any:
    """What loads a model that writes text: also one that could look or listen, and is used on text alone.

    Raises:
        ValueError: beginning with `start`; a model that does not continue text.
    """
    if (
        "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
        or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING and not config.is_encoder_decoder:
        return AutoModelForMultimodalLM
    kind = ", ".join(getattr(config, "architectures", None) or [config.model_type])
    raise ValueError(
        f"{start}, which is a {kind}: Transformers can load it neither as a causal language model nor as a multimodal "
        "one. Give a model whose config.json names a …ForCausalLM, such as a text-only checkpoint of its family."
    )


def text_tokenizer(given: Any, model: "str | PreTrainedModel", args: Any) -> Any:
    """The tokenizer of a student, which is used on text alone: of a processor, the part that reads text.

    Raises:
        ValueError: the model was not loaded from a folder or the Hub, so that nothing says where its tokenizer is.
    """
    name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    if given is None and name:
        revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
        options = {"truncation_side": "left", "padding_side": "left", "trust_remote_code": args.trust_remote_code}
        return AutoTokenizer.from_pretrained(name, revision=revision, **options)
    if given is None:
        raise ValueError(
            "processing_class is None, and the student was not loaded from a folder with a tokenizer. Give its "
            "tokenizer as processing_class."
        )
    if not isinstance(given, ProcessorMixin):
        return given
    given.tokenizer.chat_template = given.tokenizer.chat_template or getattr(given, "chat_template", None)
    return given.tokenizer


def freeze_what_text_does_not_reach(model: Any) -> None:
    """Freeze the parts of a multimodal student that look or listen: no gradient comes there, which DDP would wait for.

    Nothing is done to a model of text alone, nor under an adapter, which has frozen them.
    """
    if hasattr(model, "peft_config") or model.config.get_text_config() is model.config:
        return
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    read = {id(p) for part in (model.get_decoder(), *embeddings) if part is not None for p in part.parameters()}
    frozen = [name for name, p in model.named_parameters() if id(p) not in read]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    if frozen:
        logger.warning(
            "The student is a %s and is trained only on text: %d tensors that text does not reach stay frozen (%s, …).",
            type(model).__name__,
            len(frozen),
            frozen[0],
        )


def head_rows(model: PreTrainedModel) -> int:
    """Rows of the output layer: the token ids that the model can score. ZeRO-3 keeps the shape beside its shards."""
    weight = _output_layer(model).weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def head_of(model: PreTrainedModel) -> Head:
    """The output layer of a causal language model, with the scalings its configuration declares."""
    layer, config = _output_layer(model), model.config.get_text_config()
    parts: tuple[Any, Any] = (layer.weight, getattr(layer, "bias", None))
    weight, bias = (part.full_tensor() if isinstance(part, DTensor) else part for part in parts)  # whole under FSDP2
    # Cohere multiplies by `logit_scale`, Falcon-H1 by `lm_head_multiplier`; Granite and MiniCPM divide by
    # `logits_scaling`, which HyperCLOVA X multiplies by.
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    name = next((name for name in names if getattr(config, name, None) is not None), None)
    scale = 1.0 if name is None else float(getattr(config, name))
    if name == "logits_scaling" and config.model_type != "hyperclovax":
        scale = 1.0 / scale
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return Head(weight, bias, scale, softcap)


def _output_layer(model: PreTrainedModel) -> Any:
    """The layer behind the last states, whose weights are read past its own forward.

    Raises:
        ValueError: there is none; or its weights are not the matrix that the states are multiplied by.
    """
    layer: Any = model.get_output_embeddings()
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings; a causal language model is needed")
    if hasattr(layer, "base_layer") or hasattr(layer, "token_adapter"):
        raise ValueError(
            f"an adapter wraps the output layer of {type(model).__name__} ({type(layer).__name__}), whose weights are "
            "read directly, so the adapter would have no effect. Merge it (model.merge_and_unload()), or leave the "
            "layer out of target_modules and trainable_token_indices."
        )
    weight = layer.weight
    packed = hasattr(weight, "__tensor_flatten__") and not isinstance(weight, DTensor)
    if packed or not weight.is_floating_point() or len(getattr(weight, "ds_shape", weight.shape)) != 2:
        dtype = str(weight.dtype).removeprefix("torch.")
        raise ValueError(
            f"the output layer of {type(model).__name__} is a quantised {type(layer).__name__} (its weight is a "
            f"{type(weight).__name__} of {dtype}), and its weights are read directly. Leave the layer out of the "
            "quantisation (bitsandbytes: llm_int8_skip_modules: [lm_head]; torchao: modules_to_not_convert: [lm_head])."
        )
    return layer
