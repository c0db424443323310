"""Memory of each stage of a step on one process, as named parts.

Stages in order: (teacher prefixes,) rollout, student scoring, teacher scoring, update. The update has three moments:
the loss's backward pass in the head, the backward pass of the layers, and the optimiser's step.
"""

from dataclasses import dataclass

from .activations import (
    head_copy_bytes,
    head_slice_bytes,
    kv_cache_bytes,
    layer_backward_bytes,
    sampler_bytes,
    scoring_activations,
    training_activations,
)
from .setup import Setup
from .shape import ModelShape

CUDA_OVERHEAD_BYTES = 1_500_000_000
"""Assumed, not measured: a CUDA context, cuBLAS workspaces and what the caching allocator leaves unused."""

CPU_OVERHEAD_BYTES = 560_000_000
"""Python with PyTorch, Transformers, TRL and datasets in a running trainer, measured on Linux."""

NUM_MOMENTS = {"sgd": 0, "lomo": 0, "adafactor": 0, "lion": 1, "rmsprop": 1, "adagrad": 1, "ademamix": 3}
"""Numbers that an optimiser keeps for each parameter, where its name contains this; 2 otherwise, as Adam's. Adafactor
keeps only rows and columns."""


@dataclass(frozen=True)
class Stage:
    """Memory at the largest moment of a stage; `parts` maps what holds it to bytes."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def stage_peaks(setup: Setup, *, first_step: bool) -> tuple[Stage, ...]:
    """Every stage of the first step, or of any later one, in the order of a step."""
    state, work = 0 if first_step else optimizer_bytes(setup), setup.work
    resident = {
        "student weights": _sharded(setup, setup.student.parameters * setup.weight_bytes)
        + (_sharded(setup, setup.trainable * setup.trainable_bytes) if setup.lora else 0),
        "teacher weights": _teacher_bytes(setup),
        "optimiser state": state,
        "overhead": CUDA_OVERHEAD_BYTES if setup.on_gpu else CPU_OVERHEAD_BYTES,
    }
    stages = [("rollout", _rollout(setup))]
    if setup.scoring_passes:
        copies = {"half-precision copies": _autocast_copies(setup)}
        scoring = _scoring(setup, setup.student, setup.weight_bytes, work.micro_rows)
        stages.append(("student scoring", scoring | copies))
    stages += [("teacher scoring", _teacher_scoring(setup)), ("update", _update(setup, state))]
    if setup.teacher_writes:
        rows = min(work.prompts, work.decoded_rows)
        writing = _generation(setup, setup.teacher, setup.teacher_bytes, rows, work.longest_prompt)
        stages.insert(0, ("teacher prefixes", writing))
    return tuple(Stage(name, {k: v for k, v in (resident | parts).items() if v}) for name, parts in stages)


def optimizer_bytes(setup: Setup) -> int:
    """The optimiser's moments of every trained parameter; on each process its shard."""
    count = next((count for name, count in NUM_MOMENTS.items() if name in setup.optim), 2)
    size = 1.0 if "8bit" in setup.optim else 0.5 if "4bit" in setup.optim else float(setup.trainable_bytes)
    return _sharded(setup, round(count * size * setup.trainable))


def _teacher_bytes(setup: Setup) -> int:
    whole = 0 if setup.shares_base else setup.teacher.parameters * setup.teacher_bytes
    whole += sum(held.bytes for held in setup.beside)
    return _sharded(setup, whole) if setup.shard_teacher else whole


def _sharded(setup: Setup, size: int) -> int:
    return -(-size // setup.shards)


def _gathered(setup: Setup, shape: ModelShape, weight_bytes: int) -> int:
    """What FSDP holds whole while it computes: one layer, the embedding and the head."""
    if not setup.sharded or (shape is setup.teacher and not setup.shard_teacher):
        return 0
    layer = shape.layer_parameters // shape.num_layers
    return (layer + shape.head_parameters + shape.embedding_parameters) * weight_bytes


def _larger(*moments: dict[str, int]) -> dict[str, int]:
    return max(moments, key=lambda parts: sum(parts.values()))


# ---------------------------------------------------------------------- rollout


def _rollout(setup: Setup) -> dict[str, int]:
    """The rows that the process decodes at once. With vLLM their cache is vLLM's own."""
    if setup.vllm is not None:
        return {}
    work = setup.work
    # At the start of the schedule nearly the whole sequence is a prefix, read in one pass.
    read = work.longest if setup.guided else work.longest_prompt
    return _generation(setup, setup.student, setup.weight_bytes, work.decoded_rows, read)


def _generation(setup: Setup, shape: ModelShape, weight_bytes: int, rows: int, read: int) -> dict[str, int]:
    """The larger of reading the first `read` tokens in one pass, and of drawing the last token."""
    size = setup.compute_bytes if setup.autocast else weight_bytes
    reading = {
        "KV cache": kv_cache_bytes(shape, size, rows, read),
        "prompt activations": scoring_activations(setup, shape, weight_bytes, rows, read),
    }
    drawing = {"KV cache": kv_cache_bytes(shape, size, rows, setup.work.longest), "sampler": sampler_bytes(shape, rows)}
    return _larger(reading, drawing) | {"gathered layers": _gathered(setup, shape, weight_bytes)}


# ---------------------------------------------------------------------- scoring


def _teacher_scoring(setup: Setup) -> dict[str, int]:
    parts = _scoring(setup, setup.teacher, setup.teacher_bytes, setup.work.teacher_rows)
    # The parts of a pass and their concatenation exist together, then the step's copy and the micro-batches'.
    return parts | {"kept top-k": 2 * _kept_top_k(setup), "kept hidden states": 3 * _kept_hidden(setup)}


def _scoring(setup: Setup, shape: ModelShape, weight_bytes: int, rows: int) -> dict[str, int]:
    """The larger of one layer in flight, and the head's slices beside the last states."""
    work = setup.work
    states = rows * (2 * work.longest + work.longest_response) * shape.hidden_size * max(weight_bytes, 2)
    slices = head_slice_bytes(setup, shape, rows * work.longest_response, "scoring")
    slices += head_copy_bytes(setup, shape, weight_bytes)
    layer = scoring_activations(setup, shape, weight_bytes, rows, work.longest)
    gathered = {"gathered layers": _gathered(setup, shape, weight_bytes)}
    return _larger({"activations": layer}, {"activations": states, "head slices": slices}) | gathered


def _autocast_copies(setup: Setup) -> int:
    """Autocast keeps a half-precision copy of every trained matrix until the forward pass is over."""
    return 2 * setup.student.layer_parameters if setup.autocast and not setup.lora else 0


def _kept_top_k(setup: Setup) -> int:
    """Ids (int32) and log-probs (float32) of every response token: an upper bound, reached if all are outliers."""
    return 8 * setup.top_k * setup.work.rollout_rows * setup.work.longest_response


def _kept_hidden(setup: Setup) -> int:
    if setup.loss == "tokens":
        return 0
    size = setup.compute_bytes if setup.autocast else setup.teacher_bytes
    return setup.work.rollout_rows * setup.work.longest_response * setup.teacher.hidden_size * size


# ---------------------------------------------------------------------- update


def _update(setup: Setup, state: int) -> dict[str, int]:
    """The largest of the update's moments, beside what the step keeps for its later micro-batches."""
    step = {
        "gradients": _gradients(setup),
        "optimiser state": optimizer_bytes(setup),
        "optimiser's temporaries": _optimizer_temporaries(setup),
    }
    # At the end of the backward pass: every gradient, and for a tied matrix both of its halves before they are added.
    halves = 2 * _head_gradient(setup) if setup.student.tied else 0
    end = {"gradients": _gradients(setup), "head gradient": halves}
    backward = [_head_backward(setup), _layer_backward(setup), end]
    return _larger(*({"optimiser state": state} | moment for moment in [*backward, step])) | {
        "kept top-k": _kept_top_k(setup),
        "kept hidden states": _kept_hidden(setup),
        "gathered layers": _gathered(setup, setup.student, setup.weight_bytes),
    }


def _head_backward(setup: Setup) -> dict[str, int]:
    work, student = setup.work, setup.student
    slices = head_slice_bytes(setup, student, work.micro_rows * work.longest_response, setup.loss)
    return {
        "activations": training_activations(setup),
        "head slices": slices + head_copy_bytes(setup, student, setup.weight_bytes),
        "head gradient": _head_gradient(setup),
        "half-precision copies": 0 if setup.checkpointing else _autocast_copies(setup),
        "gradients": _accumulated(setup),
    }


def _layer_backward(setup: Setup) -> dict[str, int]:
    """At the last layer: every other layer's activations are still there."""
    return {
        "activations": training_activations(setup) + layer_backward_bytes(setup),
        "head gradient": _head_gradient(setup),
        "half-precision copies": 0 if setup.checkpointing else _autocast_copies(setup),
        "gradients": _accumulated(setup),
    }


def _gradients(setup: Setup) -> int:
    """Of every trained parameter; data parallelism without sharding keeps a copy of them in its buckets."""
    size = _sharded(setup, setup.trainable * setup.trainable_bytes)
    return 2 * size if setup.num_processes > 1 and not setup.sharded else size


def _accumulated(setup: Setup) -> int:
    """Gradients of earlier micro-batches of the step."""
    return _gradients(setup) if setup.work.update_rows > setup.work.micro_rows else 0


def _head_gradient(setup: Setup) -> int:
    return 0 if setup.lora else setup.student.head_parameters * 4


def _optimizer_temporaries(setup: Setup) -> int:
    """Fused Adam needs none; the multi-tensor one takes a square root of every second moment at once."""
    if setup.lora or "fused" in setup.optim or not setup.on_gpu:
        return 0
    return _sharded(setup, setup.trainable * setup.trainable_bytes)
