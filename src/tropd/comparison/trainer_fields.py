"""Are the fields that a plan gives to the trainer fields of it? Asked before anything is prepared."""

from dataclasses import fields

from ..objective.methods import SETTINGS
from ..suggestions import hint
from .plan import Plan


def check_trainer_fields(plan: Plan) -> None:
    """Refuse a name in `trainer`, or beside a method's parts, that `TrOPDConfig` does not have.

    TRL is imported for it, which takes seconds; a plan without such names, as most are, does not wait for that.

    Raises:
        ValueError: naming the place, and the field that was probably meant.
    """
    named = [("trainer", name) for name in plan.trainer] + [
        (f"methods.{label}", name)
        for label, parts in plan.methods.items()
        for name in parts
        if name != "method" and name not in SETTINGS
    ]
    if not named:
        return
    from ..training.config import TrOPDConfig

    known = [field.name for field in fields(TrOPDConfig) if field.init]
    for where, name in named:
        if name not in known:
            raise ValueError(
                f"{where} has {name!r}, which is neither a part of a method nor a field of TrOPDConfig"
                f"{hint(name, [*SETTINGS, *known])}."
            )
