"""Memory, time and disk of a distillation run, estimated from its configuration: no weight is read.

Nothing heavy is imported before a model's shape is asked for.
"""

from .available import available_memory
from .disk import DiskEstimate, check_disk, estimate_disk
from .memory import Fit, MemoryEstimate, estimate_memory
from .plan import RunPlan, plan_run
from .render import render
from .setup import Setup, Workload
from .several_teachers import plan_arguments
from .shape import ModelShape, model_shape
from .stages import Stage
from .time import HARDWARE, Hardware, Rates, StepTime, Work, step_work, time_from_hardware, time_from_rates

__all__ = [
    "HARDWARE",
    "DiskEstimate",
    "Fit",
    "Hardware",
    "MemoryEstimate",
    "ModelShape",
    "Rates",
    "RunPlan",
    "Setup",
    "Stage",
    "StepTime",
    "Work",
    "Workload",
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
