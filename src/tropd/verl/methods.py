"""Which methods verl can run, and as what."""

from ..objective.methods import METHODS, Method, get_method

LOSS_SETTINGS = (
    *("gate", "outlier", "outlier_tau", "advantage_floor", "advantage", "advantage_alpha", "advantage_scale"),
    *("baseline", "fkl_top_k", "fkl_truncation", "fkl_weight", "teacher_entropy_tau", "jsd_beta", "ratio_clip"),
)
"""Parts of a method that the loss reads. Those of guidance are decided where the data is written (`tropd export`)."""


def why_not(method: Method) -> str | None:
    """Why verl cannot run `method`; `None` where it can.

    >>> why_not(METHODS["tropd"]), why_not(METHODS["gkd"])
    (None, "it reads the teacher's whole distribution, and verl's teacher sends its top-k")
    """
    if method.needs_full_teacher:
        other = "; with baseline=top_k it can" if method.baseline == "full" else ""
        other = "; with support=teacher it can" if method.support == "union" else other
        return f"it reads the teacher's whole distribution, and verl's teacher sends its top-k{other}"
    if method.second_stage is not None:
        return "it changes during training, and verl does not tell a loss how far training is"
    if method.gate == "student_entropy":
        return "it ranks the tokens of the whole batch by entropy, and verl's loss sees one micro-batch"
    if method.reduction != "shared":
        return f"its reduction is {method.reduction!r}, and verl divides by the number of response tokens"
    if method.advantage_scale != "none":
        return (
            "it scales a step by the total variation of the steps before, and verl's loss sees one micro-batch; with "
            "advantage_scale=none it can"
        )
    if method.turn_trust != "none":
        return "it weighs each turn by the episode before it, and verl's loss does not know where turns begin"
    return None


def verl_methods() -> list[str]:
    """Names of the published methods that verl can run."""
    return [name for name, method in METHODS.items() if why_not(method) is None]


def verl_method(name: str, **changes: object) -> Method:
    """The method called `name` as verl's loss runs it.

    The prefix is no part of the loss there: β is 0, since verl marks prefix tokens as not to be learned from.

    >>> verl_method("tropd").guidance_beta
    0.0

    Args:
        name: a key of `METHODS`, or `package.module:NAME`.
        changes: new values for `LOSS_SETTINGS`; `None` keeps the method's own.

    Raises:
        ValueError: an unknown method, a setting that it would not read, or a method that verl cannot run.
    """
    method = get_method(name, **changes)
    reason = why_not(method)
    if reason is not None:
        raise ValueError(f"method {name!r} cannot run in verl: {reason}. Choose another: {', '.join(verl_methods())}.")
    return get_method(name, **changes, guidance_beta=0.0) if method.guided else method
