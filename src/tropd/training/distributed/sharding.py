"""How models are distributed over the processes: the frozen teacher, and what FSDP2 does to outputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate.utils import fsdp2_prepare_model
from transformers import PreTrainedModel
from trl.models import prepare_deepspeed

from ...models.hidden_states import rotates_by_length


def prepare_teacher(trainer: Any, model: PreTrainedModel) -> Callable:
    """The teacher's forward pass on this process's device: sharded as the student is, or whole.

    FSDP2 shards the model in place.
    """
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)  # type: ignore[no-any-return]
    if shards_teacher(trainer):
        # Layer by layer, as the student: TRL's prepare_fsdp makes one unit, which each process would gather whole.
        return fsdp2_prepare_model(trainer.accelerator, model).eval()  # type: ignore[no-any-return]
    if trainer.is_fsdp_enabled:  # accelerate prepares no second model beside one that FSDP shards
        if not trainer.accelerator.verify_device_map(model):
            model.to(trainer.accelerator.device)
        return in_autocast(trainer.accelerator, model)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)  # type: ignore[no-any-return]


def shards_teacher(trainer: Any) -> bool:
    """Does each process hold only a part of the teacher?

    Of DeepSpeed's stages, only ZeRO-3 shards weights. A teacher that is the student's base is sharded like the student.
    """
    if trainer.teachers_elsewhere:
        return False
    lies_as_student = trainer.args.shard_teacher or trainer.shares_base
    return bool(uses_zero3(trainer) or (trainer.is_fsdp_enabled and lies_as_student))


def reads_by_length(trainer: Any) -> bool:
    """May a process split a micro-batch into several passes of the student where that pays?

    Sharded weights are gathered by all processes together, in each pass. DDP counts the gradients of a parameter, and
    reentrant checkpointing makes one in each pass.
    """
    args = trainer.args
    reentrant = bool(args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))
    counts_gradients = trainer.accelerator.num_processes > 1 and reentrant
    if rotates_by_length(trainer.model):
        return False
    return not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or counts_gradients)


def uses_zero3(trainer: Any) -> bool:
    """Does DeepSpeed shard every model that is loaded?"""
    return bool(trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3)


def student_is_sharded_while_writing(trainer: Any) -> bool:
    """Does the student's forward pass need every rank, while it writes rollouts?"""
    zero3 = uses_zero3(trainer) and not trainer.args.ds3_gather_for_generation
    return trainer.accelerator.num_processes > 1 and bool(trainer.is_fsdp_enabled or zero3)


def in_autocast(accelerator: Any, model: Callable) -> Callable:
    """`model`, called in the run's mixed precision."""

    def forward(**inputs: Any) -> Any:
        with accelerator.autocast():
            return model(**inputs)

    return forward


def keep_outputs_exact(accelerator: Any) -> None:
    """Keep FSDP2 from casting what a forward pass returns to half precision.

    accelerate's policy for bf16 does so, for logits that the model has computed in bf16 anyway. Our forward passes
    return log-probabilities in float32: one of -20 nats would be off by 0.06.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    policy: Any = getattr(plugin, "mixed_precision_policy", None)
    if getattr(policy, "output_dtype", None) is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


@contextmanager
def whole_weights(accelerator: Any) -> Iterator[None]:
    """Inside, the host saves a model that FSDP shards as one; with `SHARDED_STATE_DICT` it would save nothing."""
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    before = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(before)
