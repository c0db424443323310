"""Are the fields that a plan gives to the trainer fields of it? Asked before anything is prepared."""

from dataclasses import fields
from typing import get_type_hints

from ...objective.methods import SETTINGS
from ...suggestions import hint
from ...training.guards.field_types import check_value
from ..plan import Plan


def check_trainer_fields(plan: Plan) -> None:
    """Refuse a name in `trainer`, or beside a method's parts, that `TrOPDConfig` does not have, and a value of no type
    that it takes.

    TRL is imported for it, which takes seconds; a plan without such names, as most are, does not wait for that.
    """
    named = [("trainer", name, value) for name, value in plan.trainer.items()] + [
        (f"methods.{label}", name, value)
        for label, parts in plan.methods.items()
        for name, value in parts.items()
        if name not in ("method", "learning_rate", *SETTINGS)
    ]
    if not named:
        return
    from ...training.config import TrOPDConfig

    known = [field.name for field in fields(TrOPDConfig) if field.init]
    hints = get_type_hints(TrOPDConfig)
    for where, name, value in named:
        if name not in known:
            raise ValueError(
                f"{where} has {name!r}, which is neither a setting of a method nor a field of "
                f"TrOPDConfig{hint(name, [*SETTINGS, *known])}."
            )
        check_value(f"{where}.{name}", value, hints[name])
