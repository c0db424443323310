"""`TrOPDConfig`: TRL's `GRPOConfig` with a distillation method instead of GRPO's loss."""

import logging
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from transformers import SchedulerType
from transformers.training_args import trainer_log_levels
from trl import GRPOConfig

from .checkpointing.hub import TokenStaysHere
from .guards.field_types import check_types
from .guards.host_settings import check_host_values, field_guard
from .method_settings import MethodSettings

logger = logging.getLogger(__name__)

# Settings of GRPO's own loss. They would be silently ignored, so a value other than GRPO's default is refused.
_GRPO_LOSS_SETTINGS = (
    "loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "off_policy_mask_threshold",
    "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "beta", "sync_ref_model", "ref_model_mixup_alpha",
    "ref_model_sync_steps", "use_bias_correction_kl", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta",
    "entropy_target", "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos",
    "vespo_k_neg", "vespo_lambda_neg", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap",
)  # fmt: skip


# Further settings of a sampler that are allowed, because the distribution of tokens does not depend on them.
_LEAVES_SOFTMAX = (
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
    "prefill_chunk_size", "low_memory", "do_sample", "renormalize_logits", "pad_token_id", "bos_token_id",
    "continuous_batching_config",
)  # fmt: skip
_NEUTRAL: dict[str, Any] = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "num_beams": 1, "num_return_sequences": 1, "no_repeat_ngram_size": 0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "length_penalty": 1.0, "guidance_scale": 1.0, "min_length": 0, "min_new_tokens": 0,
}  # fmt: skip
_OWN_FIELDS = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} | {
    "max_new_tokens": "max_completion_length",
    "max_length": "max_completion_length",
    "eos_token_id": "ending_ids",
}


# The values of the host's fields that are annotated as text and that it would check late or never.
_CHOICES: dict[str, tuple[str, ...]] = {
    "lr_scheduler_type": tuple(kind.value for kind in SchedulerType),
    "log_level": tuple(trainer_log_levels),
    "log_level_replica": tuple(trainer_log_levels),
    "include_num_input_tokens_seen": ("no", "all", "non_padding"),
    "train_sampling_strategy": ("random",),  # the order of prompts is shuffle_dataset's
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "guidance_unit": ("tokens", "turns"),
    "guidance_pattern": ("prefix", "mixed", "trust"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
}


@dataclass
class TrOPDConfig(TokenStaysHere, MethodSettings, GRPOConfig):
    """Everything a run needs besides its models and data: the fields of `MethodSettings`, and all of TRL's.

    Defaults are the paper's where it states them. Settings of GRPO's own loss, which would have no effect, are refused.
    """

    # Log ratios and gates compare log-probabilities of one network: dropout would make each pass another one.
    disable_dropout: bool = field(default=True, metadata={"help": "Switch off the student's dropout."})

    # The settings of TrOPD (arXiv 2606.01249) where it states them.
    learning_rate: float = field(default=5e-6, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The learning-rate schedule."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})
    # What TRL computes for it is read by its own loss alone.
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "TRL's extra pass beside vLLM, which nothing reads here."}
    )
    num_generations: int | None = field(default=4, metadata={"help": "Rollouts per prompt; 1 is allowed."})

    _VALID_DICT_FIELDS = [  # noqa: RUF012
        *getattr(GRPOConfig, "_VALID_DICT_FIELDS", []),
        "teacher_model_init_kwargs",
        "teacher_chat_template_kwargs",
    ]

    def __post_init__(self) -> None:
        check_types(self, _CHOICES)
        self.resolved_method()  # a wrong name or part is refused before anything is loaded
        self.check_ranges()
        check_host_values(self)
        self._check_groups()
        self._refuse_grpo_loss_settings()
        self._warn_of_truncated_sampling()
        self._refuse_backend_without_launcher()
        with field_guard(vars(self)):
            if self.num_generations == 1:
                self._post_init_with_single_rollouts()
            else:
                super().__post_init__()
        self._check_windows()
        self.check_benchmarks()
        self._check_generation_kwargs()

    def _check_groups(self) -> None:
        if self.reward_mixing_weight > 0 and self.num_generations == 1:
            raise ValueError(
                f"reward_mixing_weight is {self.reward_mixing_weight} with num_generations 1: the rewards' advantage "
                "is relative to the other rollouts of a prompt, so it would be zero. Use num_generations >= 2."
            )

    def _refuse_backend_without_launcher(self) -> None:
        if self.ddp_backend is not None and "RANK" not in os.environ:
            raise ValueError(
                f"ddp_backend is {self.ddp_backend!r:.100}, but this process was not started by a launcher such as "
                "torchrun or accelerate launch, so there are no other processes. Remove it."
            )

    def _refuse_grpo_loss_settings(self) -> None:
        defaults = {f.name: f.default for f in fields(GRPOConfig) if f.default is not MISSING}
        for name in _GRPO_LOSS_SETTINGS:
            if name in defaults and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but it belongs to GRPO's loss and has no effect here: the "
                    f"loss is set by `method` ({self.method!r}) and its parts. Remove it."
                )

    def _check_generation_kwargs(self) -> None:
        """Refuse settings that would draw rollouts from another distribution than the scored one, each by its name.

        vLLM has names of its own, which go to its `SamplingParams`.
        """
        from transformers import GenerationConfig

        given: Any = self.generation_kwargs or {}  # a dict by now, though TRL also takes JSON
        if given.get("seed") is not None:
            raise ValueError(
                f"generation_kwargs has 'seed' ({given['seed']!r:.60}), which would make all rollouts of a prompt the "
                "same. Remove it: each row gets its own seed from `seed`, the step and the row."
            )
        for name, value in given.items():
            neutral = value is None or name in _LEAVES_SOFTMAX or _NEUTRAL.get(name, value is None) == value
            if self.use_vllm or neutral or not hasattr(GenerationConfig(), name):
                continue
            reason = (
                f"which is the field {_OWN_FIELDS[name]} here. Set that instead."
                if name in _OWN_FIELDS
                else "which changes how rollouts are drawn, while both models score the whole softmax. Remove it."
            )
            raise ValueError(f"generation_kwargs has {name!r} ({value!r:.60}), {reason}")

    def _warn_of_truncated_sampling(self) -> None:
        """Scores are of the whole softmax at the sampling temperature; a sampler that cuts it draws from another."""
        untouched = {"top_p": (1.0,), "top_k": (0, -1, None), "min_p": (0.0, None), "repetition_penalty": (1.0, None)}
        changed = [
            f"{name}={getattr(self, name)}" for name, values in untouched.items() if getattr(self, name) not in values
        ]
        if changed:
            logger.warning(
                "%s: rollouts are drawn from a truncated or reshaped softmax, but student and teacher score the whole "
                "one, so log ratios and the trust gate are biased. The papers sample with none of these.",
                ", ".join(changed),
            )

    def _post_init_with_single_rollouts(self) -> None:
        """GRPO refuses one rollout per prompt, because its advantages need a group; distillation's do not."""
        total = self.generation_batch_size or self.per_device_train_batch_size * int(
            os.environ.get("WORLD_SIZE", "1")
        ) * (self.steps_per_generation or self.gradient_accumulation_steps)
        if total < 2:
            raise ValueError(
                "a step of one prompt with num_generations 1 has a single sequence; TRL needs at least two. "
                "Raise per_device_train_batch_size or gradient_accumulation_steps."
            )
        eval_rollouts, self.num_generations_eval = self.num_generations_eval, self.num_generations_eval or 1
        self.num_generations = total
        super().__post_init__()
        self.num_generations, self.num_generations_eval = 1, eval_rollouts

    def _check_windows(self) -> None:
        assert self.steps_per_generation is not None, "GRPOConfig fills it"
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation is {self.steps_per_generation}, not a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}): an optimiser step would mix two rollout batches, whose token "
                "counts are not known together. Make it a multiple."
            )
