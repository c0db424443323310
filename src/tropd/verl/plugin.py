"""verl's entry point: importing this file arms tropd in the process. verl imports it, nobody else."""

from .arming import arm_loudly

arm_loudly()
