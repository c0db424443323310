"""Bytes of activations, of the KV cache and of the head's slices, term by term as Transformers' layers keep them.

Sizes are of a Llama-like decoder layer (RMSNorm, rotary attention, gated feed-forward). Letters: h hidden size, q width
of all query heads, k width of all key/value heads, I intermediate size, L padded length, V vocabulary.
"""

from .setup import Setup
from .shape import ModelShape

HEAD_BLOCKS = {"scoring": 4, "tokens": 2, "divergence": 6, "mixture": 6}
"""Float32 blocks of logits alive beside the one slice [C, V]: in scoring, and in the loss with sampled and top-k terms,
with a full-vocabulary KL and with a full-vocabulary mixture (JSD), whose slice is two of half the tokens."""

SAMPLER_SLICES = 4
"""Float32 tensors [rows, V] alive while a token is drawn: logits, their copy, probabilities, and the draw's noise."""


def saved_layer_bytes(setup: Setup, rows: int) -> int:
    """What autograd keeps of one student layer.

    Each RMSNorm keeps input, normalised and scaled (12 bytes an element in float32, 8 in half precision); under
    autocast every projection also keeps its own half-precision input. Attention keeps q, k, v, its output and the mask;
    the feed-forward keeps four tensors of width I.
    """
    shape, size, length = setup.student, setup.compute_bytes, setup.work.longest
    norm = 12 if setup.weight_bytes > 2 and not setup.autocast else 8
    token = 2 * norm * shape.hidden_size + 4 * size * shape.intermediate_size
    if setup.autocast:
        token += 5 * 2 * shape.hidden_size
    if shape.query_norm:
        token += (norm - size if norm == 12 else 6) * (shape.query_width + shape.kv_width)
    token += _attention_token_bytes(setup, shape, size, rows, length)
    return rows * length * token


def _attention_token_bytes(setup: Setup, shape: ModelShape, size: int, rows: int, length: int) -> int:
    """q, k, v, output, log-normaliser and mask of one token in one layer."""
    masked = _masked(setup, rows)
    keys = shape.query_width if masked else shape.kv_width  # SDPA with a mask repeats keys and values for the heads
    token = size * (2 * shape.query_width + 2 * keys) + 4 * shape.num_heads
    if setup.attention == "eager":
        return token + shape.num_heads * length * (4 + size)
    return token + (size * length if masked else 0)


def _masked(setup: Setup, rows: int) -> bool:
    """Several rows are padded to one length, which SDPA needs a mask for; flash attention does not."""
    return rows > 1 and not setup.attention.startswith("flash")


def training_activations(setup: Setup) -> int:
    """What the forward pass keeps of all layers until the backward pass, and of the last norm and its output."""
    work, shape = setup.work, setup.student
    tokens = work.micro_rows * work.longest
    layer = saved_layer_bytes(setup, work.micro_rows)
    if setup.checkpointing:
        layer = tokens * shape.hidden_size * setup.weight_bytes  # a layer's input
    # Final norm, its output, and the states of the response tokens.
    last = tokens * shape.hidden_size * 12 + work.micro_rows * work.longest_response * shape.hidden_size * 4
    return shape.num_layers * layer + last + _mask_bytes(setup, work.micro_rows, work.longest)


def layer_backward_bytes(setup: Setup) -> int:
    """Gradients in flight within one layer, and that layer's recomputed activations under checkpointing."""
    work, shape = setup.work, setup.student
    gradients = (
        work.micro_rows * work.longest * (3 * shape.intermediate_size + 2 * shape.hidden_size) * setup.compute_bytes
    )
    return gradients + (saved_layer_bytes(setup, work.micro_rows) if setup.checkpointing else 0)


def scoring_activations(setup: Setup, shape: ModelShape, weight_bytes: int, rows: int, length: int) -> int:
    """One layer in flight without gradient: 4h and either 3I or the attention's operands; then the last states."""
    size = setup.compute_bytes if setup.autocast else weight_bytes
    feed_forward = 3 * shape.intermediate_size * size
    attention = _attention_token_bytes(setup, shape, size, rows, length) + 2 * shape.kv_width * size
    token = 4 * shape.hidden_size * max(weight_bytes, size) + max(feed_forward, attention)
    return rows * length * token + _mask_bytes(setup, rows, length)


def _mask_bytes(setup: Setup, rows: int, length: int) -> int:
    """The boolean mask [rows, L, L] that all layers share."""
    return rows * length**2 if _masked(setup, rows) else 0


def kv_cache_bytes(shape: ModelShape, size: int, rows: int, length: int) -> int:
    """Keys and values of every layer, and one layer's copy while a token is appended to it."""
    layer = 2 * shape.kv_width * rows * length * size
    return (shape.num_layers + 1) * layer


def sampler_bytes(shape: ModelShape, rows: int) -> int:
    """Logits and probabilities of one token of each row."""
    return SAMPLER_SLICES * 4 * rows * shape.vocab_size


def head_slice_bytes(setup: Setup, shape: ModelShape, num_tokens: int, use: str) -> int:
    """The chunked head's slices of float32 logits, and the blocks of them that are worked on; `use`: `HEAD_BLOCKS`."""
    from ..objective.head.layer import default_slice_tokens
    from ..objective.head.matmul import BLOCK_ELEMENTS

    device = "elsewhere" if setup.on_gpu else "cpu"
    most = max(held * default_slice_tokens(shape.vocab_size, device, held) for held in (1, 2))
    rows = min(most, num_tokens)
    block = min(max(1, BLOCK_ELEMENTS["gpu" if setup.on_gpu else "cpu"] // shape.vocab_size), rows)
    return 4 * (rows + HEAD_BLOCKS[use] * block) * shape.vocab_size


def head_copy_bytes(setup: Setup, shape: ModelShape, weight_bytes: int) -> int:
    """Half-precision copy of the head's weight under autocast over wider weights."""
    return 2 * shape.head_parameters if setup.autocast and weight_bytes > 2 else 0
