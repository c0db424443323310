"""Is the teacher the student's own base model, which under an adapter need not be loaded twice?"""

import os
from typing import Any

KEEPS_BASE = (True, False, "gaussian")
"""Values of LoRA's `init_lora_weights` that leave the base's weights as they are; PiSSA, OLoRA and the like do not."""


def is_same_model(student: Any, teacher: Any) -> bool:
    """Are they one object, one name of the Hub, or one folder, however it is spelled?"""
    if not (isinstance(student, str) and isinstance(teacher, str)):
        return student is teacher
    if os.path.isdir(student) and os.path.isdir(teacher):
        return os.path.realpath(student) == os.path.realpath(teacher)
    return student == teacher


def why_not_shared(peft_config: Any, student_init: Any, teacher_init: Any) -> str | None:
    """Why a base that is the teacher, too, has to be loaded a second time; `None`: it need not be.

    The two are compared by `model_init_kwargs` and `teacher_model_init_kwargs`.
    """
    if peft_config is None:
        return "there is no adapter (peft_config) to tell the two apart"
    if getattr(peft_config, "bias", "none") not in ("none", None):
        return f"the adapter trains the base's biases (bias={peft_config.bias!r}), so switched off it is not the base"
    start = getattr(peft_config, "init_lora_weights", True)
    if start not in KEEPS_BASE:
        return f"init_lora_weights={start!r} changes the base's weights, so with the adapter off it is not the base"
    if layers := getattr(peft_config, "layer_replication", None):
        return f"layer_replication={layers!r} repeats the base's own layers, so with the adapter off it is not the base"
    if teacher_init and _loading(teacher_init) != _loading(student_init):
        return "teacher_model_init_kwargs asks for another one than model_init_kwargs"
    return None


def is_own_base(student: Any, teacher: Any, peft_config: Any, args: Any) -> bool:
    """Is the student without its adapter the teacher, so that one copy is both?"""
    if not is_same_model(student, teacher):
        return False
    return why_not_shared(peft_config, args.model_init_kwargs, args.teacher_model_init_kwargs) is None


def _loading(init: Any) -> dict[str, str]:
    """Arguments of `from_pretrained` with dtypes under one name."""
    named = {"dtype" if name == "torch_dtype" else name: str(value) for name, value in dict(init or {}).items()}
    return {name: value.removeprefix("torch.") for name, value in named.items()}
