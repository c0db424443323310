"""The shape of a model: how many parameters it has and where, read from its configuration alone.

The model is built on PyTorch's meta device, which has shapes and no memory, so the counts are exact and no weight is
read. A name of the Hub fetches its `config.json` and nothing else.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
"""Bytes of one parameter."""

_SAFETENSORS_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model. Made by `model_shape`, read by every estimate."""

    name: str  # folder, Hub name or model type
    parameters: int  # all of them, tied embeddings counted once
    active_parameters: int  # those a token passes through; fewer than `parameters` in a mixture of experts
    head_parameters: int  # of the output layer, tied or not
    embedding_parameters: int  # of the input embedding where it is a matrix of its own; 0 where it is tied to the head
    num_layers: int  # decoder layers
    hidden_size: int  # width of the residual stream
    intermediate_size: int  # width of the feed-forward layer that a token passes through
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads
    head_dim: int  # width of one head
    vocab_size: int  # rows of the head
    query_norm: bool = False  # are queries and keys normalised (Qwen3, Gemma 3)?
    stored_bytes: int = 4  # bytes of one parameter as stored
    notes: tuple[str, ...] = ()  # what is not counted exactly

    @property
    def tied(self) -> bool:
        return self.embedding_parameters == 0

    @property
    def is_elsewhere(self) -> bool:
        """Is it behind a server, so that nothing of it counts?"""
        return self.parameters == 0

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of one layer's keys (or values) for one token."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        return self.parameters - self.head_parameters - self.embedding_parameters

    @property
    def body_parameters(self) -> int:
        """Parameters that a token is multiplied with before the head; fewer in a mixture of experts."""
        return self.active_parameters - self.head_parameters - self.embedding_parameters


def served_shape(name: str) -> ModelShape:
    """A teacher behind a server: nothing of it is in this process."""
    note = "it is behind a server, whose memory and time are not counted"
    return ModelShape(name, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, vocab_size=1, notes=(note,))


def model_shape(source: "str | Path | PretrainedConfig", *, trust_remote_code: bool = False) -> ModelShape:
    """The shape of the model in a folder, under a Hub name, or of a configuration object.

    >>> from tropd.proving_ground.family import model_path
    >>> shape = model_shape(model_path("student"))
    >>> shape.parameters, shape.num_layers, shape.tied, shape.stored_bytes
    (664416, 3, True, 4)
    """
    import torch
    from transformers import AutoConfig

    from ..models.hidden_states import language_model_class

    folder = Path(source) if isinstance(source, str | Path) else None
    config: Any = source
    if folder is not None:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        made_by = language_model_class(config, f"the model is {str(source)[:80]!r}")
        model = made_by.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    active, notes = _active_parameters(text, sizes)
    heads = text.num_attention_heads
    return ModelShape(
        name=str(source) if folder is not None else text.model_type,
        parameters=sum(sizes.values()),
        active_parameters=active,
        head_parameters=sum(parameter.numel() for parameter in head.parameters()),
        embedding_parameters=0 if embedding.weight is head.weight else embedding.weight.numel(),
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=_intermediate_size(text),
        num_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=head.weight.shape[0],
        query_norm=any("q_norm" in name for name in sizes),
        stored_bytes=_stored_bytes(config, folder),
        notes=(*notes, *_unmodelled(config)),
    )


def dtype_bytes(dtype: Any) -> int:
    """Bytes of one parameter of a dtype, given as `torch.bfloat16` or its name.

    >>> dtype_bytes("bfloat16")
    2
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise ValueError(f"dtype is {dtype!r}, whose size is not known here. Use one of {', '.join(DTYPE_BYTES)}.")
    return DTYPE_BYTES[name]


def _active_parameters(text: Any, sizes: dict[str, int]) -> tuple[int, tuple[str, ...]]:
    """Parameters that one token passes through, and what to say about them."""
    total = sum(sizes.values())
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    if not experts:
        return total, ()
    count = next((getattr(text, name) for name in _NUM_EXPERTS if getattr(text, name, None)), None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if not count or not chosen:
        return total, ("a mixture of experts of an unknown kind: every parameter is counted as active",)
    return total - experts + experts * chosen // count, (f"{chosen} of {count} experts are active for a token",)


def _intermediate_size(text: Any) -> int:
    expert = getattr(text, "moe_intermediate_size", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if expert and chosen:
        return expert * chosen
    return getattr(text, "intermediate_size", None) or 4 * text.hidden_size


def _stored_bytes(config: Any, folder: Path | None) -> int:
    """Bytes of a parameter as `dtype="auto"` loads it: the configuration's dtype, else that of the first weight."""
    if getattr(config, "dtype", None) is not None:
        return dtype_bytes(config.dtype)
    files = sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []
    for file in files[:1]:
        from safetensors import safe_open

        with safe_open(file, framework="np") as header:
            dtypes = [header.get_slice(name).get_dtype() for name in header.keys()]  # noqa: SIM118
        return next((_SAFETENSORS_DTYPES[dtype] for dtype in dtypes if dtype in _SAFETENSORS_DTYPES), 4)
    return 4


def _unmodelled(config: Any) -> tuple[str, ...]:
    """Sentences about what the estimates leave out for this model."""
    text = config.get_text_config()
    notes = []
    if getattr(config, "quantization_config", None):
        notes.append("the weights are quantised, which is not modelled: memory and disk are overestimated")
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds & {"sliding_attention", "chunked_attention"}:
        notes.append("sliding windows are not modelled: the KV cache is overestimated")
    if kinds & {"linear_attention", "mamba"}:
        notes.append("recurrent layers are counted as attention: the KV cache is overestimated")
    return tuple(notes)
