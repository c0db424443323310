"""What a trainer refuses before it is built, or before it trains; each sentence says what to do instead."""

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset, Value
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.utils import CONFIG_NAME

from ...objective.methods import Method
from ...teacher.names import COLUMN, Name, field_of, teacher_phrase, why_unknown
from ...teacher.per_teacher_settings import args_of, check_settings
from ...teacher.served.address import is_own, is_served
from ...teacher.served.connect import check_served
from ...teacher.shared_base import why_not_shared
from ..checkpointing.place import check_place
from ..config import TrOPDConfig
from ..distributed.sharding import shards_teacher, uses_zero3
from ..method_settings import SERVED, MethodSettings
from .host_settings import check_host_settings

logger = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"

OWN_BASE = (
    "pass the base model, without an adapter, as both, and the adapter as peft_config; or load the teacher twice."
)


def check_arguments(
    args: TrOPDConfig, student: Any, teachers: Mapping[Name, Any], data: Mapping[str, Any], options: dict[str, Any]
) -> None:
    """Refuse arguments of `TrOPDTrainer` that are invalid or contradict each other.

    Data sets come by the names of their arguments; `options` are the remaining arguments, `reward_funcs` among them.

    Raises:
        ValueError: with the argument, why it cannot be, and what to type.
    """
    _check_given(args, student, teachers)
    method = args.resolved_method()
    check_settings(args, teachers)
    for argument, rows in data.items():
        check_data(argument, rows, teachers, options.get("environment_factory") is not None)
    check_host_settings(args)
    check_served(method, args, teachers)
    _warn_of_idle_fields(args, teachers)
    assert args.output_dir is not None  # the host names one where nobody has
    check_place(args.output_dir)
    _check_model("model", "student", student, args.output_dir)
    for name, teacher in teachers.items():
        _check_model(f"teacher_model ({name or 'teacher'})", field_of(name), teacher, args.output_dir)
        if student is teacher and not isinstance(student, str):
            _check_one_object(args_of(args, name, teachers), student, options)
        _check_adapter(teacher_phrase(name), teacher, learns=False)
    _check_engine_of_tools(args, options)
    _check_turns(args, method, options)
    if args.cast_lm_head_to_fp32:
        raise ValueError(
            "cast_lm_head_to_fp32 has no effect here: the output layer is always accumulated in float32. Remove it."
        )
    _check_one_for_each_reward(args, options)
    if args.reward_mixing_weight > 0 and not has_rewards(options):
        raise ValueError(
            f"reward_mixing_weight is {args.reward_mixing_weight}, but there are no rewards to mix in; give "
            "reward_funcs, or remove it."
        )


def _check_one_for_each_reward(args: TrOPDConfig, options: dict[str, Any]) -> None:
    rewards = options.get("reward_funcs") or []
    count = len(rewards) if isinstance(rewards, list) else 1
    tokenizers = options.get("reward_processing_classes")
    for name, given in (("reward_weights", args.reward_weights), ("reward_processing_classes", tokenizers)):
        num = len(given) if isinstance(given, (list, tuple)) else 1
        if given is not None and (num != count or not count):
            raise ValueError(f"{name} has {num}, but there are {count} reward_funcs. Give one for each, or remove it.")


def as_text(model: Any) -> Any:
    """A path as text, which is what the host loads from; anything else unchanged."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def _check_given(args: Any, student: Any, teachers: Mapping[Name, Any]) -> None:
    """Refuse arguments that are not a configuration, a model or the place of one."""
    if not isinstance(args, TrOPDConfig):
        raise ValueError(f"args is a {type(args).__name__}; give a TrOPDConfig, or remove it to use the defaults.")
    given = {"model": student} | {f"teacher_model{'' if n is None else f'[{n!r}]'}": t for n, t in teachers.items()}
    for name, model in given.items():
        writes = isinstance(model, nn.Module) and hasattr(model, "generate") and hasattr(model, "config")
        if not (isinstance(model, str) or writes) or model == "":
            raise ValueError(
                f"{name} is {model!r:.100} ({type(model).__name__}); give a folder or a Hub name as text, or a loaded "
                "causal language model (AutoModelForCausalLM.from_pretrained)."
            )


def check_data(name: str, data: Any, teachers: Collection[Name], has_environment: bool, what: str = "") -> None:
    """Refuse data without prompts, whose prompts are neither text nor messages, or with columns of reserved names.

    `data` is a data set, several by name, or `None`; a stream is checked as far as it
    describes itself. Sentences call it `what`.

    Raises:
        ValueError: with the argument, or what the data are, and what to do.
    """
    what = what or ("the training data" if name == "train_dataset" else "the evaluation data")
    if isinstance(data, Mapping):
        for key, part in data.items():
            check_data(f"{name}[{key!r}]", part, teachers, has_environment, f"{what} {key!r}")
        return
    _check_columns(what, data, has_environment)
    if isinstance(data, Dataset):
        _check_prompts(name, data)
    check_teacher_column(data, teachers, what)


def check_rows(rows: Collection[Any], has_environment: bool) -> None:
    """The same for the rows of a stream, as they arrive.

    Raises:
        ValueError: with the first row that cannot be.
    """
    for row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"a row is {row!r:.100}; a row is a mapping with a prompt")
        for name in (*TAKEN, *PICTURES):
            if name in row:
                raise ValueError(f"a row has a column {name!r}, {_why_not(name)}; rename it")
        prompt = row.get("prompt")
        is_messages = isinstance(prompt, list) and all(isinstance(m, Mapping) and "role" in m for m in prompt)
        if not has_environment and not (isinstance(prompt, str) or (prompt and is_messages)):
            raise ValueError(
                f"a row has the prompt {prompt!r:.100}; a prompt is text, or messages with role and content"
            )


def _check_prompts(name: str, data: Dataset) -> None:
    if not len(data):
        raise ValueError(f"{name} has no rows. Give some, or remove it.")
    kind = data.features.get("prompt")
    message = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
    is_text = isinstance(kind, Value) and kind.dtype in ("string", "large_string")
    is_messages = isinstance(message, dict) and "role" in message
    is_json = "Json" in (type(kind).__name__, type(message).__name__)
    if kind is not None and not (is_text or is_messages or is_json):
        raise ValueError(
            f"{name} has prompts of the type {kind}; a prompt is text, or a list of messages with role and content."
        )
    if kind is not None and (lacking := data.data.column("prompt").null_count):
        raise ValueError(f"{name} has {lacking} rows without a prompt (null). Remove them.")


def _check_model(argument: str, role: str, model: Any, output_dir: str) -> None:
    """Refuse a model without values, one beside an adapter, and one that the final model would overwrite."""
    check_no_adapter_beside(role, model)
    if isinstance(model, nn.Module) and any(weight.is_meta for weight in model.parameters()):
        raise ValueError(
            f"{argument} has weights on the meta device, which hold no values. Load it, or name its folder."
        )
    if isinstance(model, str) and Path(model).is_dir() and Path(model).resolve() == Path(output_dir).resolve():
        raise ValueError(
            f"output_dir is {output_dir!r}, the folder of the {role}, whose weights the final model would overwrite. "
            "Choose another folder."
        )


def _check_turns(args: TrOPDConfig, method: Method, options: dict[str, Any]) -> None:
    """Refuse settings of turns where an episode is one turn, and guidance that does not exist or is not received."""
    has_turns = bool(options.get("tools") or options.get("environment_factory"))
    has_own = options.get("rollout_func") is not None
    if method.guided and has_own:
        raise ValueError(
            f"method {args.method!r} starts rollouts from teacher prefixes, which a rollout_func does not receive. "
            "Set guidance_schedule='none', or remove rollout_func."
        )
    if (args.guidance_unit == "turns" or args.guidance_pattern != "prefix") and not (method.guided and has_turns):
        name = "guidance_unit" if args.guidance_unit == "turns" else "guidance_pattern"
        why = "there are no tools and no environment, so an episode is one turn"
        why = why if method.guided else f"method {args.method!r} is not guided"
        raise ValueError(f"{name} is {getattr(args, name)!r}, but {why}. Remove it.")
    if args.guidance_pattern != "prefix" and args.guidance_unit == "tokens":
        raise ValueError(
            f"guidance_pattern is {args.guidance_pattern!r}, which draws who writes a turn, but guidance_unit is "
            "'tokens'. Remove one."
        )
    stages = [method] if method.second_stage is None else [method, method.second_stage]
    for name, value in (("reduction", "per_turn"), ("turn_trust", "weight")):
        if not (has_turns or has_own) and any(getattr(stage, name) == value for stage in stages):
            raise ValueError(
                f"{name} is {value!r}, but there are no tools, no environment and no rollout_func, so an episode is "
                "one turn and it would have no effect. Remove it."
            )


def _check_engine_of_tools(args: TrOPDConfig, options: dict[str, Any]) -> None:
    """Refuse engines that need as many rows of each process in every turn, which a tool loop does not give."""
    if not args.use_vllm or not (options.get("tools") or options.get("environment_factory")):
        return
    if args.vllm_mode == "server" and args.world_size > 1:
        raise ValueError(
            f"vllm_mode is 'server' with {args.world_size} processes, and there are tools: each process requests as "
            "many rows as called a tool, and TRL would give one process the responses of another. Use one "
            "process, vllm_mode: colocate, or Transformers' generate (use_vllm: false)."
        )
    if args.vllm_mode == "colocate" and args.vllm_tensor_parallel_size > 1:
        raise ValueError(
            f"vllm_tensor_parallel_size is {args.vllm_tensor_parallel_size}, and there are tools: the processes of "
            "one vLLM would have to request the same number of rows in every turn. Set it to 1, or use Transformers' "
            "generate (use_vllm: false)."
        )


def _warn_of_idle_fields(args: TrOPDConfig, teachers: Mapping[Name, Any]) -> None:
    """Warn of fields about teachers that have no effect because no teacher is behind a server, or all are."""
    served = [is_served(teacher) for teacher in teachers.values()]
    own = any(map(is_own, teachers.values()))  # it reads micro-batches as a teacher in this process does
    idle = ("teacher_batch_size",) if all(served) and not own else () if any(served) else SERVED
    defaults = {field.name: field.default for field in fields(MethodSettings)}
    changed = [name for name in idle if getattr(args, name) != defaults[name]]
    if changed:
        why = "the teacher is behind a server" if all(served) else "no teacher is behind a server"
        logger.warning("%s: no effect, since %s.", ", ".join(changed), why)


def _check_one_object(args: TrOPDConfig, student: Any, options: dict[str, Any]) -> None:
    """Refuse one object as student and teacher, unless it is the teacher and an adapter on it the student."""
    if is_peft_model(student):
        raise ValueError(
            "student and teacher are the same PeftModel. Its adapter would belong to both, and is not disabled for "
            f"the teacher: {OWN_BASE}"
        )
    why = why_not_shared(options.get("peft_config"), args.model_init_kwargs, args.teacher_model_init_kwargs)
    if why is not None:
        raise ValueError(
            "student and teacher are the same object. One model can be both if an adapter (peft_config) on it is the "
            f"student and its base is the teacher, but {why}. Load the teacher separately, or copy it."
        )


def check_teacher_column(dataset: Any, teachers: Collection[Name], what: str) -> None:
    """Refuse rows that name no teacher of the run; rows of a stream are refused as they arrive.

    With one unnamed teacher, a column of that name is data like any other; a warning says so.

    Raises:
        ValueError: with the first such row, its value, how many there are, and the names.
    """
    columns = getattr(dataset, "column_names", None) or ()
    if None in teachers:
        if COLUMN in columns:
            logger.warning(
                "%s has a column %r, but teacher_model is one teacher, which scores every row; the column is only "
                "handed to the reward functions. Give a mapping from its names to models for several teachers.",
                what[0].upper() + what[1:],
                COLUMN,
            )
        return
    if not hasattr(dataset, "__len__"):
        return
    names = [str(name) for name in teachers]
    values = dataset[COLUMN] if COLUMN in columns else [None] * len(dataset)
    bad = [(row, why) for row, value in enumerate(values) if (why := why_unknown(value, names)) is not None]
    if bad:
        more = f" This affects {len(bad)} of {len(dataset)} rows." if len(bad) > 1 else ""
        raise ValueError(f"row {bad[0][0]} of {what} (counted from 0) {bad[0][1]}{more}")


def has_rewards(options: dict[str, Any]) -> bool:
    """Are there reward functions, or an environment that may bring its own?"""
    return bool(options.get("reward_funcs")) or options.get("environment_factory") is not None


def check_enough_prompts(num_prompts: int, args: TrOPDConfig) -> None:
    """Refuse data that do not fill one rollout batch: the host drops the rest of an epoch, and would train nothing.

    Raises:
        ValueError: with both numbers, and what to lower.
    """
    assert args.generation_batch_size is not None, "GRPOConfig fills it"
    assert args.num_generations is not None
    per_step = args.generation_batch_size // args.num_generations
    if num_prompts < per_step:
        raise ValueError(
            f"the training data has {num_prompts} prompts, but one rollout batch takes {per_step} "
            f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}), so "
            "nothing would be trained. Lower per_device_train_batch_size or gradient_accumulation_steps, or give more "
            "prompts."
        )


TAKEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What the host hands to reward functions by these names, beside the data's columns."""
PICTURES = ("image", "images")
"""Columns that the host takes for pictures."""


def _check_columns(what: str, dataset: Any, has_environment: bool) -> None:
    columns = getattr(dataset, "column_names", None)
    for name in columns or ():
        if name in TAKEN + PICTURES:
            raise ValueError(
                f"{what} has a column {name!r}, {_why_not(name)}. Rename it: "
                f"dataset.rename_column({name!r}, 'my_{name}'), or in the file."
            )
    if columns is not None and "prompt" not in columns and not has_environment:
        raise ValueError(
            f"{what} has no `prompt` column (it has: {', '.join(columns) or 'none'}). Rename yours: "
            "dataset.rename_column('question', 'prompt')."
        )


def _why_not(column: str) -> str:
    if column in PICTURES:
        return "but TRL would treat it as images, and the student reads only text"
    return "but TRL passes something else to reward functions under this name"


def check_host_model(trainer: Any) -> None:
    """Refuse what the built host cannot carry yet: router losses, and some kinds of sharding."""
    if trainer.aux_loss_enabled:
        raise ValueError(
            "the student is a mixture of experts with a router loss, which is not supported yet. Set "
            "router_aux_loss_coef to 0."
        )
    _check_adapter("the student", trainer.model, learns=True)
    _check_trains(trainer)
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP version 1 hides the output layer outside of its own forward pass, which tropd reads there. Set "
            "fsdp_version: 2 in accelerate's configuration (fsdp_config: {version: 2} in the trainer's)."
        )
    _check_whole_teacher(trainer)
    if trainer.method.needs_full_teacher and shards_teacher(trainer):
        raise ValueError(
            f"method {trainer.args.method!r} reads the teacher's output layer in the loss, where it is sharded. With "
            "FSDP set shard_teacher: false; else use ZeRO-2 or DDP, or a method without a full-vocabulary divergence."
        )


def _check_trains(trainer: Any) -> None:
    """Refuse a student of which nothing would be trained, and an optimiser or a schedule of something else."""
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            "the student (model) has no trainable weights: all are frozen (requires_grad is False), or its adapter is "
            "disabled. Unfreeze some, or give a peft_config."
        )
    optimizer, schedule = (getattr(trainer, name, None) for name in ("optimizer", "lr_scheduler"))
    if optimizer is None:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not held & trained:
        raise ValueError(
            "optimizers[0] holds no weights of the student, so nothing would be trained. Build it from the given "
            "model after adding the adapter, or remove it."
        )
    if not trained <= held:
        logger.warning(
            "optimizers[0] holds %d of the student's %d trainable weights; the others stay as they are.",
            len(held & trained),
            len(trained),
        )
    if schedule is not None and schedule.optimizer is not optimizer:
        raise ValueError(
            "optimizers[1] schedules a different optimiser than optimizers[0], so the learning rate would never "
            "change. Build it from optimizers[0]."
        )


def _check_whole_teacher(trainer: Any) -> None:
    """Refuse `shard_teacher: false` where the teacher is sharded anyway."""
    if trainer.args.shard_teacher or trainer.teachers_elsewhere:
        return
    if uses_zero3(trainer):
        raise ValueError(
            "shard_teacher is False, but DeepSpeed ZeRO-3 shards every model that is loaded. Remove it, or use FSDP2 "
            "or ZeRO-2."
        )
    if trainer.shares_base and trainer.is_fsdp_enabled:
        raise ValueError(
            "shard_teacher is False, but the teacher is the student's own base, which FSDP2 shards as the student. "
            "Remove it, or load the teacher separately: teacher_model_init_kwargs other than model_init_kwargs does."
        )


def _check_adapter(who: str, model: Any, learns: bool) -> None:
    """Refuse an adapter that does more than change weights: the model's forward is read from within.

    Tokens of its own before the prompt would make each state another token's; a wrapper around the forward adds to the
    loss that goes through it (AdaLoRA, where there is a loss), runs it twice, or does not pass on all arguments.
    """
    if isinstance(model, str) or not is_peft_model(model):
        return
    adapter = model.active_peft_config
    kind = getattr(adapter.peft_type, "value", adapter.peft_type)
    if adapter.is_prompt_learning:
        why = (
            f"puts {adapter.num_virtual_tokens} virtual tokens before the prompt, and scores would be those of other "
            "tokens"
        )
    elif getattr(adapter, "alora_invocation_tokens", None):
        why = "acts only after its alora_invocation_tokens, which it looks for in whole rows of token ids"
    elif type(model.base_model).forward not in (BaseTuner.forward, None if learns else AdaLoraModel.forward):
        why = "wraps the model's forward pass, and changes what goes in or what comes out, such as the loss"
    else:
        return
    raise ValueError(
        f"{who}'s adapter (peft_config) is {type(adapter).__name__}, of kind {kind}: it {why}. Use an adapter of the "
        "weights alone, such as LoraConfig."
    )


def check_no_adapter_beside(role: str, model: Any) -> None:
    """Refuse a folder that holds a model and an adapter: Transformers silently applies the one to the other.

    A name of the Hub, or a model, is let through.

    Raises:
        ValueError: with the folder, and what to do.
    """
    if not isinstance(model, str) or not all((Path(model) / name).is_file() for name in (CONFIG_NAME, ADAPTER)):
        return
    raise ValueError(
        f"{role} is {model!r}, which holds a model and an adapter ({ADAPTER}): Transformers would apply the adapter "
        "to the model, a second time if the model is already merged. If it is merged, or if you want the model "
        f"without the adapter, remove {ADAPTER}; otherwise merge the two (merge_and_unload) and save the result in "
        "its own folder."
    )


def check_padding(trainer: Any) -> None:
    """Refuse a student that could not end a response, or be padded with anything."""
    if trainer._tokenizer.pad_token_id is None:
        raise ValueError(
            "the student's tokenizer (processing_class) has neither a padding nor an end-of-sequence token, and rows "
            "are padded with one. Set its pad_token and its eos_token."
        )
    if not trainer.args.ending_ids and not any(i is not None for i in trainer.eos_token_ids):
        raise ValueError(
            "the student has no end-of-sequence token: neither its generation_config.eos_token_id nor its tokenizer "
            "(processing_class) names one, so no response could end. Set the tokenizer's eos_token."
        )


def check_topk(trainer: Any) -> None:
    """Refuse a k that some teacher's server does not answer.

    Raises:
        ValueError: with both numbers, and what to type.
    """
    stages = [trainer.method, *filter(None, [trainer.method.second_stage])]
    merged = max(len(trainer.endings.as_one) - 1, 0)  # endings that are one event of the k
    shared = trainer.shared_vocab_size
    needed = [min(stage.fkl_top_k + merged, shared) for stage in stages if stage.needs_topk and stage.fkl_top_k]
    for name, teacher in trainer.teachers.by_name.items() if needed else ():
        most = teacher.most_topk
        if most is not None and most < max(needed):
            beside = f" beside {merged} other endings" if merged else ""
            raise ValueError(
                f"fkl_top_k is {max(needed) - merged}{beside}, but {teacher_phrase(name)}'s server lists at most "
                f"{most} log-probabilities a token. Start it with --max-logprobs {max(needed)}, or set fkl_top_k: "
                f"{max(most - merged, 1)}."
            )


def check_teacher_apart(trainer: Any, teachers: Mapping[Name, Any]) -> None:
    """Refuse a teacher with weights of the student: it is frozen and, if they are trained, would change with them.

    Raises:
        ValueError: with one of the weights, and what to type.
    """
    for name, teacher in teachers.items():
        if name in trainer.own_bases or isinstance(teacher, str):
            continue
        ours, theirs = _weights(trainer.model), _weights(teacher)
        shared = [weight for place, weight in theirs.items() if place in ours]
        if shared:
            raise ValueError(
                f"teacher_model shares {len(shared)} of its {len(theirs)} weights with the student ({shared[0]}, …), "
                "so freezing it would freeze the student. Where the teacher is the base of the student's adapter: "
                f"{OWN_BASE}"
            )


def _weights(model: nn.Module) -> dict[Any, str]:
    """Where the parameters of a model are, with their names; a sharded or empty one has no address."""
    return {(p.device, p.data_ptr() or id(p)): name for name, p in model.named_parameters()}
