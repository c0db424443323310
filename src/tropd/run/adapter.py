"""The LoRA adapter of the settings, and whether its base is the teacher as well."""

from typing import Any

from ..training.own_base import is_own_base


def shares_base(settings: Any, args: Any) -> bool:
    """Will the student's base be the teacher, loaded once?"""
    return is_own_base(settings.student, settings.teacher, adapter(settings) if settings.use_peft else None, args)


def adapter(settings: Any) -> Any:
    """The LoRA adapter of the settings."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
    )
