"""The LoRA adapter of the settings, and whether its base is the teacher as well."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..teacher.names import Name
from ..teacher.per_teacher_settings import args_of
from ..teacher.shared_base import is_own_base
from ..training.method_settings import check_ranges

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lora_r": (lambda rank: rank >= 1, "an adapter has a rank of at least 1; use 16"),
    "lora_alpha": (lambda scale: scale >= 1, "the adapter's part is multiplied by lora_alpha / lora_r; use 32"),
    "lora_dropout": (lambda share: 0 <= share < 1, "it is a share of the inputs, in [0, 1)"),
    "lora_target_modules": (lambda names: len(names) > 0, "name the layers that get the adapter, or all-linear"),
}


def check_adapter_settings(settings: Any) -> None:
    """Refuse numbers that no adapter can have."""
    if settings.use_peft:
        check_ranges(settings, RANGES)


def own_bases(settings: Any, args: Any) -> set[Name]:
    """The names of the teachers that will be the student's own base, loaded once."""
    peft_config = adapter(settings) if settings.use_peft else None
    return {
        name
        for name, model in settings.teachers.items()
        if is_own_base(settings.student, model, peft_config, args_of(args, name, settings.teachers))
    }


@contextmanager
def targets_named(settings: Any) -> Iterator[None]:
    """Inside, an adapter finds its layers in a model; where it finds none, that is a sentence."""
    try:
        yield
    except ValueError as error:
        if not settings.use_peft or not str(error).startswith("Target modules "):
            raise
        raise ValueError(
            f"lora_target_modules is {settings.lora_target_modules!r}, but the student has no such layer. Name some of "
            "its linear layers as its own code does (such as q_proj), or all-linear."
        ) from error


def adapter(settings: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
    )
