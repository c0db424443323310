"""Several teachers in an estimate: the largest as if it read every row, the others as the weights that they hold."""

from collections.abc import Collection, Mapping
from typing import Any

from ..teacher.names import Name
from ..teacher.per_teacher_settings import args_of
from .setup import HeldTeacher, loaded_bytes
from .shape import ModelShape


def plan_arguments(args: Any, shapes: Mapping[Name, ModelShape], own_bases: Collection[Name]) -> dict[str, Any]:
    """Arguments of `plan_run` for the teachers of a run.

    Args:
        args: the configuration.
        shapes: of the teachers that are loaded, by name; one teacher has the name `None`.
        own_bases: names of those that are the base of the student's adapter, with no weights of their own.
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
