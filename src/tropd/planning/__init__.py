"""Memory, time and disk of a distillation run, estimated from its configuration: no weight is read.

Nothing heavy is imported before a model's shape is asked for.
"""

from .available import available_memory
from .disk import check_disk, estimate_disk
from .memory import estimate_memory
from .plan import RunPlan, plan_run
from .render import render
from .several_teachers import plan_arguments
from .shape import ModelShape, model_shape
from .time import HARDWARE, Hardware, Rates, StepTime, step_work, time_from_hardware, time_from_rates

__all__ = [
    "HARDWARE",
    "Hardware",
    "ModelShape",
    "Rates",
    "RunPlan",
    "StepTime",
    "available_memory",
    "check_disk",
    "estimate_disk",
    "estimate_memory",
    "model_shape",
    "plan_arguments",
    "plan_run",
    "render",
    "step_work",
    "time_from_hardware",
    "time_from_rates",
]
