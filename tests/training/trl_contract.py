"""What we rely on in TRL 1.16: the hooks of its trainer whose signatures are checked, what is read of it, and the two
methods of Transformers that addressed sampling goes through. The decoding loop is tried, not read (`engine.self_test`).

The tests hold it against what is installed; a user's installation is held against the releases of
`tropd.training.guards.versions`.
"""

import inspect
import re
from typing import Any

from transformers import GenerationMixin
from trl import GRPOTrainer

OVERRIDDEN: dict[str, tuple[str, ...]] = {
    "_tokenize_prompts": ("self", "prompts"),
    "_generate_single_turn": (
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ),
    "_tool_call_loop": (
        "self",
        "prompts",
        "prompt_ids",
        "completion_ids",
        "completions",
        "logprobs",
        "images",
        "multimodal_fields",
    ),
    "_get_tool_suffix_ids": ("self", "tool_messages"),
    "_get_train_sampler": ("self", "dataset"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
        "pixel_values",
        "image_grid_thw",
        "num_images",
        "pixel_attention_mask",
        "spatial_shapes",
        "num_tiles",
        "image_sizes",
        "token_type_ids",
        "mm_token_type_ids",
        "image_position_ids",
    ),
    "_prepare_inputs": ("self", "generation_batch"),
    "_compute_loss": ("self", "model", "inputs"),
    "training_step": ("self", "model", "inputs", "num_items_in_batch"),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "get_batch_samples": ("self", "epoch_iterator", "num_batches", "device"),
    "get_eval_dataloader": ("self", "eval_dataset"),
    "log": ("self", "logs", "start_time"),
    "save_model": ("self", "output_dir", "_internal_call"),
    "_init_training_state": (
        "self",
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ),
}
"""Methods of `GRPOTrainer` that we replace, with the parameters we rely on."""

EXTENDED = (
    "train",
    "evaluate",
    "evaluation_loop",
    "predict",
    "init_hf_repo",
    "create_model_card",
    "_determine_best_metric",
    "_get_output_dir",
    "_save_checkpoint",
    "_push_from_checkpoint",
    "_finish_current_push",
    "_finalize_training",
)
"""Methods that we extend and hand everything on to: they have to be there, or nothing would come by ours."""

CALLED: dict[str, tuple[str, ...]] = {
    "_generate_and_score_completions": ("self", "inputs"),
}
"""Methods of `GRPOTrainer` that we call."""

ATTRIBUTES = (
    "_buffered_inputs",
    "_env_tools",
    "_is_vlm",
    "_logs",
    "_metrics",
    "_multi_environment",
    "_pending_extra_logs",
    "_pending_metrics",
    "_step",
    "_tokenizer",
    "aux_loss_enabled",
    "chat_template",
    "chat_template_kwargs",
    "environment_factories",
    "eos_token_ids",
    "generation_config",
    "generation_kwargs",
    "mask_truncated_completions",
    "max_completion_length",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
    "reward_func_names",
    "reward_funcs",
    "rollout_func",
    "temperature",
    "tools",
    "use_vllm",
    "vllm_generation",
    "vllm_importance_sampling_correction",
)
"""Instance attributes that `GRPOTrainer.__init__` sets and we read or write."""

OUTPUTS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "advantages",
    "tool_mask",
    "sampling_per_token_logps",
)
"""Keys of what `_generate_and_score_completions` returns that we read; the last two only where present."""


SAMPLER: dict[str, tuple[str, ...]] = {
    "generate": ("generation_config", "custom_generate"),
    "_sample": ("input_ids", "logits_processor", "stopping_criteria", "generation_config", "synced_gpus"),
}
"""Methods of Transformers' `GenerationMixin` that addressed sampling calls, with the parameters it passes by name."""


def check_host(host: Any = GRPOTrainer) -> None:
    """Refuse a TRL, or a Transformers, whose private hooks have moved.

    Raises:
        RuntimeError: with the hook that changed.
    """
    for name, expected in (OVERRIDDEN | CALLED).items():
        method = getattr(host, name, None)
        if method is None:
            raise _moved_error(f"{host.__name__} has no {name}, which tropd relies on")
        found = tuple(inspect.signature(inspect.unwrap(method)).parameters)
        if found != expected:
            raise _moved_error(f"{host.__name__}.{name} takes {found}, but tropd was built on {expected}")
    for name in EXTENDED:
        if getattr(host, name, None) is None:
            raise RuntimeError(
                f"{host.__name__} has no {name}, of Transformers' Trainer, which tropd extends. Install "
                "transformers>=5.17,<5.25, or a newer tropd."
            )
    if not getattr(host, "loss_is_scaled_for_ga", False):
        raise _moved_error(f"{host.__name__} no longer says that its loss is scaled, which ours is")
    source = inspect.getsource(host.__init__)
    for name in ATTRIBUTES:
        if not re.search(rf"\bself\.{name}\b", source):
            raise _moved_error(f"{host.__name__} no longer sets `{name}`, which tropd relies on")
    produced = inspect.getsource(host._generate_and_score_completions)
    for key in OUTPUTS:
        if f'"{key}"' not in produced:
            raise _moved_error(f"rollout no longer returns {key!r}, which tropd reads")
    check_sampler()


def check_sampler(mixin: Any = GenerationMixin) -> None:
    """Refuse a Transformers whose sampling loop can no longer be handed our noise.

    Raises:
        RuntimeError: with the hook that changed.
    """
    for name, expected in SAMPLER.items():
        found = inspect.signature(inspect.unwrap(getattr(mixin, name))).parameters if hasattr(mixin, name) else ()
        missing = [parameter for parameter in expected if parameter not in found]
        if missing:
            raise RuntimeError(
                f"Transformers' {mixin.__name__}.{name} no longer takes {', '.join(missing)}, which tropd passes to "
                "sample by row and position. Install transformers>=5.17,<5.25, or a newer tropd."
            )


def _moved_error(what: str) -> RuntimeError:
    return RuntimeError(f"TRL's {what} (TRL 1.16). Install trl>=1.16,<1.17, or a newer tropd.")
