"""Memory, time and disk of a distillation run, estimated from its configuration: no weight is read.

Nothing heavy is imported before a model's shape is asked for.
"""

from .available import available_memory
from .disk import check_disk
from .render import render
from .run_plan import RunPlan, plan_run
from .setup import plan_arguments
from .shape import ModelShape, model_shape
from .time import HARDWARE, Rates, StepTime

__all__ = [
    "HARDWARE",
    "ModelShape",
    "Rates",
    "RunPlan",
    "StepTime",
    "available_memory",
    "check_disk",
    "model_shape",
    "plan_arguments",
    "plan_run",
    "render",
]
