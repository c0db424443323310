"""Work and seconds of one optimiser step on one process, stage by stage, from mean lengths.

Two ways to seconds: from rates that a probe measured (`time_from_rates`), or from a device's peak numbers with assumed
utilisations (`time_from_hardware`), which is a guess to plan by and nothing else.
"""

from dataclasses import dataclass

from .setup import Setup
from .shape import ModelShape

COMPUTE_UTILISATION = 0.4
"""Assumed share of the peak FLOP/s in scoring and training."""

BANDWIDTH_UTILISATION = 0.6
"""Assumed share of the peak bandwidth while decoding."""

SECONDS_PER_LAYER = 0.5e-3
"""Assumed time in which Python launches one decoder layer of Transformers' `generate`; decoding of few rows is bound
by it. vLLM replays CUDA graphs instead."""

CACHE_TRAFFIC = 3
"""Times the KV cache crosses memory for a token with Transformers' cache, which is copied to append: read, write, and
the attention's read. vLLM's pages are read once."""


@dataclass(frozen=True)
class Hardware:
    """Peak numbers of one device, from its maker's data sheet: dense bfloat16 FLOP/s, bytes/s, and bytes."""

    flops: float
    bandwidth: float
    memory: int


HARDWARE = {
    "h100": Hardware(989e12, 3.35e12, 80_000_000_000),
    "h200": Hardware(989e12, 4.8e12, 141_000_000_000),
    "a100": Hardware(312e12, 2.04e12, 80_000_000_000),
    "rtx4090": Hardware(165e12, 1.01e12, 24_000_000_000),
}
"""H100 and H200 in SXM form, A100 with 80 GB."""


@dataclass(frozen=True)
class Work:
    """Of one stage."""

    flops: float  # floating-point operations, a multiply-add counted as two
    bytes_moved: float  # weights and KV cache read or written; activations are not counted
    launched_layers: float = 0.0  # decoder layers that Python launches one after the other to generate


@dataclass(frozen=True)
class Rates:
    """Measured speeds of one process, in the units of the metrics `speed/rollout` and `speed/teacher`."""

    rollout: float  # student-written tokens per second
    student_scoring: float  # response tokens per second, without gradient
    teacher_scoring: float  # response tokens per second
    # tokens per second of teacher prefixes, or `None`: as fast as FLOPs per token say
    teacher_writing: float | None = None
    # response tokens per second of forward and backward, or `None`: derived from `student_scoring`
    update: float | None = None


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step."""

    parts: dict[str, float]  # stage to seconds
    response_tokens: float  # response tokens learned from in a step, over all processes
    assumed: bool = False  # made from peak numbers and assumed utilisations?

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        return self.response_tokens / self.total

    def run_seconds(self, max_steps: int) -> float:
        return max_steps * self.total


def step_work(setup: Setup) -> dict[str, Work]:
    """Work of each stage of an optimiser step on one process."""
    work, student, teacher = setup.work, setup.student, setup.teacher
    rolled, updated = work.rolled_rows, work.update_rows
    passes = setup.scoring_passes
    stages = {}
    if setup.teacher_writes:
        prompts = rolled / work.num_generations
        stages["teacher prefixes"] = _generation(setup, teacher, setup.teacher_bytes, prompts, vllm=False)
    stages["rollout"] = _generation(setup, student, setup.weight_bytes, rolled, vllm=setup.vllm is not None)
    if passes:
        stages["student scoring"] = _scoring(setup, student, setup.weight_bytes, passes * rolled, work.micro_rows)
    stages["teacher scoring"] = _scoring(setup, teacher, setup.teacher_bytes, rolled, work.teacher_rows)
    scoring = _scoring(setup, student, setup.weight_bytes, updated, work.micro_rows)
    factor = update_factor(setup)
    optimizer = 10 * setup.trainable * setup.trainable_bytes // setup.shards
    stages["update"] = Work(factor * scoring.flops, factor * scoring.bytes_moved + optimizer)
    return stages


def update_factor(setup: Setup) -> float:
    """FLOPs of forward and backward over those of scoring the same rows.

    The layers run forward once, backward twice as much (weights and inputs; inputs alone under an adapter), and forward
    again under checkpointing. The head never runs forward again.
    """
    body = 1 + (1 if setup.lora else 2) + (1 if setup.checkpointing else 0)
    head = 1 + (1 if setup.lora else 2)
    work, shape = setup.work, setup.student
    layers = _forward_flops(shape, 1, work.prompt_tokens, work.response_tokens, 0)
    return (body * layers + head * _head_flops(shape, work.response_tokens)) / (
        layers + _head_flops(shape, work.response_tokens)
    )


def time_from_rates(setup: Setup, rates: Rates) -> StepTime:
    """Seconds from measured speeds; the update's from that of student scoring where it was not measured."""
    work = setup.work
    rolled = work.rolled_rows * work.response_tokens
    updated = work.update_rows * work.response_tokens
    update = rates.update or rates.student_scoring / update_factor(setup)
    parts = {"rollout": rolled / rates.rollout}
    if setup.scoring_passes:
        parts["student scoring"] = setup.scoring_passes * rolled / rates.student_scoring
    parts |= {"teacher scoring": rolled / rates.teacher_scoring, "update": updated / update}
    if setup.teacher_writes:
        relative = setup.teacher.active_parameters / setup.student.active_parameters
        writing = rates.teacher_writing or rates.rollout / relative
        parts = {"teacher prefixes": rolled / work.num_generations / writing, **parts}
    return StepTime(parts, updated * setup.num_processes)


def time_from_hardware(setup: Setup, hardware: Hardware) -> StepTime:
    """Seconds from peak numbers: each stage is bound by its arithmetic, its memory traffic or its launches.

    Nothing here was measured on such a device.
    """
    work = setup.work
    parts = {name: _seconds(setup, stage, hardware) for name, stage in step_work(setup).items()}
    return StepTime(parts, work.update_rows * work.response_tokens * setup.num_processes, assumed=True)


def _seconds(setup: Setup, work: Work, hardware: Hardware) -> float:
    # Weights and activations of four bytes run at half the bfloat16 rate at best (TF32).
    peak = hardware.flops / (1 if setup.compute_bytes <= 2 else 2)
    return max(
        work.flops / (peak * COMPUTE_UTILISATION),
        work.bytes_moved / (hardware.bandwidth * BANDWIDTH_UTILISATION),
        work.launched_layers * SECONDS_PER_LAYER,
    )


def _generation(setup: Setup, shape: ModelShape, weight_bytes: int, rows: float, *, vllm: bool) -> Work:
    """Prefill and decoding of `rows` rows.

    Transformers decodes all rows until the longest is done, so each costs as much as the longest response; vLLM's rows
    leave when they end.
    """
    work = setup.work
    decoded = work.response_tokens if vllm else float(work.longest_response)
    prefill = _forward_flops(shape, rows, work.prompt_tokens, 0, 0)
    context = work.prompt_tokens + decoded / 2
    decode = rows * decoded * (2 * (shape.body_parameters + shape.head_parameters) + _attention_flops(shape, context))
    batch = rows * work.rollout_rows / work.rolled_rows
    batches = rows / min(batch, work.decoded_rows)  # rows that decode together
    size = setup.compute_bytes if setup.autocast else weight_bytes
    weights = (shape.body_parameters + shape.head_parameters) * _weight_traffic(setup, weight_bytes)
    cache = 2 * shape.num_layers * shape.kv_width * size * (1 if vllm else CACHE_TRAFFIC)
    moved = batches * decoded * weights + rows * decoded * context * cache
    return Work(prefill + decode, moved, 0.0 if vllm else batches * decoded * shape.num_layers)


def _weight_traffic(setup: Setup, weight_bytes: int) -> int:
    """Bytes moved to use a parameter once: autocast reads it, writes its half-precision copy and reads that."""
    return weight_bytes + 4 if setup.autocast and weight_bytes > 2 else weight_bytes


def _scoring(setup: Setup, shape: ModelShape, weight_bytes: int, rows: float, rows_per_pass: int) -> Work:
    work = setup.work
    flops = _forward_flops(shape, rows, work.prompt_tokens, work.response_tokens, work.response_tokens)
    weights = (shape.body_parameters + shape.head_parameters) * _weight_traffic(setup, weight_bytes)
    return Work(flops, rows / rows_per_pass * weights)


def _forward_flops(shape: ModelShape, rows: float, prompt: float, response: float, head_tokens: float) -> float:
    """One pass over `rows` sequences, the head over `head_tokens` of each."""
    length = prompt + response
    layers = length * (2 * shape.body_parameters + _attention_flops(shape, length / 2))
    return rows * (layers + _head_flops(shape, head_tokens))


def _attention_flops(shape: ModelShape, context: float) -> float:
    """Scores and weighted values of one token against `context` others, in all layers."""
    return 4 * shape.num_layers * shape.query_width * context


def _head_flops(shape: ModelShape, num_tokens: float) -> float:
    return 2 * shape.head_parameters * num_tokens
