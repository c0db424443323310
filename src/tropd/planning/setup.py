"""What the estimates read of a run: the two shapes, how the student is trained, and one process's share of a step."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..teacher.names import Name
from ..teacher.per_teacher_settings import args_of
from .shape import ModelShape, dtype_bytes

if TYPE_CHECKING:
    from ..objective.methods import Method
    from ..training.config import TrOPDConfig


@dataclass(frozen=True)
class Workload:
    """Rows and tokens of one process.

    One rollout batch of `rollout_rows` serves `rollout_rows / update_rows · num_iterations` optimiser steps.
    """

    rollout_rows: int  # rows of a rollout batch: generated, then scored
    update_rows: int  # rows whose gradient goes into one optimiser step
    micro_rows: int  # rows of one forward-backward and of one scoring pass of the student
    teacher_rows: int  # rows of one scoring pass of the teacher
    num_generations: int  # rollouts of a prompt
    num_iterations: int  # updates made from each row
    prompt_tokens: float  # mean length of a prompt; times are made from means
    response_tokens: float  # mean length of a response, teacher prefix included
    longest_prompt: int  # tokens; memory is made from the longest
    longest_response: int  # tokens, `max_completion_length`
    rows_at_once: int | None = None  # rows that are decoded together, at most (`rollout_batch_size`); `None` is all

    @property
    def longest(self) -> int:
        return self.longest_prompt + self.longest_response

    @property
    def prompts(self) -> int:
        """Different prompts among the rows of a rollout batch."""
        return max(1, self.rollout_rows // self.num_generations)

    @property
    def decoded_rows(self) -> int:
        """Rows that are decoded together, each with its part of the KV cache."""
        return min(self.rollout_rows, self.rows_at_once or self.rollout_rows)

    @property
    def rolled_rows(self) -> float:
        """Rows generated and scored for one optimiser step, on average."""
        return self.update_rows / self.num_iterations


@dataclass(frozen=True)
class HeldTeacher:
    """One of several teachers beside the largest, which holds its weights."""

    name: str
    shape: ModelShape
    weight_bytes: int

    @property
    def bytes(self) -> int:
        return self.shape.parameters * self.weight_bytes


@dataclass(frozen=True)
class Setup:
    """Everything that memory, time and disk are computed from. Made by `read_setup`."""

    student: ModelShape
    teacher: ModelShape  # of several, the largest's, which counts as if it read every row
    work: Workload  # one process's rows and tokens
    # bytes of a student parameter as trained. TRL loads the student in float32 unless `model_init_kwargs` names a
    # dtype, and without an adapter `master_weights` keeps them in float32 then, too; `bf16=True` computes under
    # autocast over float32 weights
    weight_bytes: int = 4
    teacher_bytes: int = 4  # of a teacher parameter
    autocast: bool = False  # is half precision computed over wider weights?
    compute_bytes: int = 4  # of an activation
    checkpointing: bool = True  # are activations recomputed in the backward pass?
    attention: str = "sdpa"  # `sdpa`, `eager`, or a flash variant
    optim: str = "adamw_torch_fused"
    trainable: int = 0  # trained parameters
    lora: bool = False  # is an adapter trained instead of the weights?
    num_processes: int = 1  # processes that share a step
    sharded: bool = False  # does FSDP divide weights, gradients and optimiser state among them?
    shard_teacher: bool = True  # and the teacher's weights with them?
    shares_base: bool = False  # is the teacher the base of the student's adapter, with no weights of its own?
    top_k: int = 0  # the teacher's top-k kept for a token, 0 if none
    # `tokens` (sampled and top-k terms), or a full-vocabulary `divergence` or `mixture` (GKD), for which the teacher's
    # hidden states are kept
    loss: str = "tokens"
    guided: bool = False  # do rollouts start from a teacher prefix?
    teacher_writes: bool = False  # does the teacher write those prefixes while training?
    # passes of the student over each rollout: none where what the sampler notes suffices; TRL makes a second one for
    # its own importance ratios with vLLM
    scoring_passes: int = 1
    vllm: str | None = None  # `None`, `colocate` or `server`
    vllm_share: float = 0.0  # share of the device that a colocated vLLM takes
    on_gpu: bool = False  # is it a CUDA device?
    beside: tuple[HeldTeacher, ...] = ()  # the other teachers of several, which hold their weights
    notes: tuple[str, ...] = ()  # what is not counted exactly

    @property
    def shards(self) -> int:
        return self.num_processes if self.sharded else 1

    @property
    def trainable_bytes(self) -> int:
        """Bytes of a trained parameter, its gradient, and each moment; PEFT keeps adapters in float32."""
        return 4 if self.lora else self.weight_bytes


def read_setup(
    args: "TrOPDConfig",
    student: ModelShape,
    teacher: ModelShape,
    *,
    prompt_tokens: float,  # mean length of a rendered prompt
    response_tokens: float | None = None,  # mean length, prefix included; `max_completion_length` by default
    longest_prompt: int | None = None,  # tokens; the mean by default
    num_processes: int = 1,
    sharded: bool | None = None,  # does FSDP shard both models? `None`: as `args.fsdp` says
    lora_parameters: int | None = None,  # of the adapter; `None` trains the whole student
    teacher_writes: bool = True,  # does the teacher write prefixes while training? Only guided methods read it
    on_gpu: bool | None = None,  # `None`: as this machine and `args.use_cpu` say
    shares_base: bool = False,  # is the teacher the base of the student's adapter, loaded once?
    teacher_name: str | None = None,  # of several, the name of this one, the largest; `plan_arguments` finds it
    beside: tuple[HeldTeacher, ...] = (),  # the others
) -> Setup:
    """The fields of a configuration that the estimates need."""
    if on_gpu is None:
        import torch

        on_gpu = not args.use_cpu and torch.cuda.is_available()
    method, half = args.resolved_method(), bool(args.bf16 or args.fp16)
    stages = [method, *filter(None, [method.second_stage])]
    given = (args.model_init_kwargs, args.teacher_model_init_kwargs)
    init, teacher_init = (kwargs if isinstance(kwargs, dict) else {} for kwargs in given)
    weight_bytes = loaded_bytes(init.get("dtype", "float32"), student)
    if args.master_weights and lora_parameters is None:
        weight_bytes = max(weight_bytes, 4)
    return Setup(
        student=student,
        teacher=teacher,
        work=_workload(args, prompt_tokens, response_tokens, longest_prompt),
        weight_bytes=weight_bytes,
        teacher_bytes=weight_bytes if shares_base else loaded_bytes(teacher_init.get("dtype", "auto"), teacher),
        autocast=half and weight_bytes > 2,
        compute_bytes=2 if half else weight_bytes,
        checkpointing=bool(args.gradient_checkpointing),
        attention=str(init.get("attn_implementation") or "sdpa"),
        optim=str(getattr(args.optim, "value", args.optim)),
        trainable=student.parameters if lora_parameters is None else lora_parameters,
        lora=lora_parameters is not None,
        num_processes=num_processes,
        sharded=bool(args.fsdp) if sharded is None else sharded,
        shard_teacher=args.shard_teacher,
        shares_base=shares_base,
        top_k=max((stage.fkl_top_k or 0 for stage in stages if stage.needs_topk), default=0),
        loss=_loss(method),
        guided=method.guided,
        teacher_writes=method.guided and teacher_writes,
        scoring_passes=_scoring_passes(args, half, weight_bytes),
        vllm=args.vllm_mode if args.use_vllm else None,
        vllm_share=args.vllm_gpu_memory_utilization if args.use_vllm and args.vllm_mode == "colocate" else 0.0,
        on_gpu=on_gpu,
        beside=beside,
        notes=_notes(student, teacher, teacher_name, beside),
    )


def _notes(
    student: ModelShape, teacher: ModelShape, name: str | None, beside: tuple[HeldTeacher, ...]
) -> tuple[str, ...]:
    notes = [f"student: {note}" for note in student.notes] + [f"teacher: {note}" for note in teacher.notes]
    notes += [f"teacher {held.name!r}: {note}" for held in beside for note in held.shape.notes]
    if beside:
        notes.append(
            f"the largest of the teachers ({name}) is counted as if it read every row, the others by their weights. "
            "Each reads its own rows, so a step takes no more than this."
        )
    return tuple(notes)


def _workload(
    args: "TrOPDConfig", prompt_tokens: float, response_tokens: float | None, longest_prompt: int | None
) -> Workload:
    micro = args.per_device_train_batch_size
    response = args.max_completion_length
    if response is None:
        raise ValueError("max_completion_length is None, so nothing bounds a response; give a number of tokens.")
    assert args.steps_per_generation is not None, "GRPOConfig fills it"
    return Workload(
        rollout_rows=micro * args.steps_per_generation,
        update_rows=micro * args.gradient_accumulation_steps,
        micro_rows=micro,
        teacher_rows=args.teacher_batch_size or micro,
        num_generations=args.num_generations or 1,
        num_iterations=args.num_iterations,
        prompt_tokens=prompt_tokens,
        response_tokens=response if response_tokens is None else min(response_tokens, response),
        longest_prompt=round(prompt_tokens) if longest_prompt is None else longest_prompt,
        longest_response=response,
        rows_at_once=args.rollout_batch_size,
    )


def loaded_bytes(dtype: Any, shape: ModelShape) -> int:
    """Bytes of a parameter that `from_pretrained(dtype=dtype)` loads; `auto` and `None` take the stored dtype."""
    return shape.stored_bytes if dtype in ("auto", None) else dtype_bytes(dtype)


def _loss(method: "Method") -> str:
    if not method.needs_full_teacher:
        return "tokens"
    return "divergence" if method.jsd_beta in (0.0, 1.0) else "mixture"


def _scoring_passes(args: "TrOPDConfig", half: bool, weight_bytes: int) -> int:
    """TRL's own (`GRPOTrainer._generate_and_score_completions`), and ours where what the sampler notes does not do."""
    suffices = not half and weight_bytes > 2  # as `training.rollout_stage.notes_suffice`
    if args.rescore_rollouts is not None or not args.addresses_sampling():
        suffices = args.rescore_rollouts is False
    return bool(args.use_vllm and args.vllm_importance_sampling_correction) + (not suffices)


def plan_arguments(args: Any, shapes: Mapping[Name, ModelShape], own_bases: Collection[Name]) -> dict[str, Any]:
    """Arguments of `plan_run` for the teachers of a run: the largest as if it read every row, the others as weights.

    `shapes` are of the teachers that are loaded; `own_bases` are the base of the student's adapter, without weights of
    their own.
    """
    largest = max(shapes, key=lambda name: shapes[name].parameters)
    others = [name for name in shapes if name != largest and name not in own_bases]
    beside = []
    for name in others:
        init = args_of(args, name, shapes).teacher_model_init_kwargs
        dtype = init.get("dtype", "auto") if isinstance(init, dict) else "auto"
        beside.append(HeldTeacher(str(name), shapes[name], loaded_bytes(dtype, shapes[name])))
    return {
        "args": args_of(args, largest, shapes),
        "teacher": shapes[largest],
        "teacher_name": largest,
        "shares_base": largest in own_bases,
        "beside": tuple(beside),
    }
