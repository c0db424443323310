"""The LoRA adapter of the settings, and whether its base is the teacher as well."""

from typing import Any

from ..teacher.names import Name
from ..training.by_teacher import args_of
from ..training.own_base import is_own_base


def own_bases(settings: Any, args: Any) -> set[Name]:
    """The names of the teachers that will be the student's own base, loaded once."""
    peft_config = adapter(settings) if settings.use_peft else None
    return {
        name
        for name, model in settings.teachers.items()
        if is_own_base(settings.student, model, peft_config, args_of(args, name, settings.teachers))
    }


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
