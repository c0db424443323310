"""The settings of a method: allowed values, where each has an effect, and the message otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from ..suggestions import hint

if TYPE_CHECKING:
    from .methods import Method

TRUST_GATES = ("bernoulli", "expected", "hard")
GATES = ("open", "closed", *TRUST_GATES, "floor", "student_entropy", "teacher_entropy", "support")
TRUSTS = ("k1", "jsd", "gkd", "rkl_direct")
SUPPORTS = ("teacher", "union")
OUTLIERS = ("fkl_direct", "fkl_scalar", "rkl_direct", "mask", "clip", "k1")
ADVANTAGES = ("log_ratio", "mixture", "power", "sign")
ADVANTAGE_SCALES = ("none", "total_variation")
BASELINES = ("none", "full", "top_k")
GUIDANCE_TERMS = ("nll", "k1")
REDUCTIONS = ("shared", "per_region", "per_turn", "selected")
TURN_TRUSTS = ("none", "weight")
TRUNCATIONS = ("none", "teacher_renorm", "tail")
SCHEDULES = ("cosine", "linear", "constant", "none")
PREFIX_READINGS = ("cap", "share")


@dataclass(frozen=True)
class Setting:
    """A part of a method that may be changed by its name.

    Attributes:
        name: field of `Method`.
        is_read: does a method (a stage of it) read the part?
        reason: why not, with `m` the method.
        choices: the values it may have; empty for a number.
        in_range: may it have this value?
        range: the sentence for the others.
        stages: of a two-stage method, which take a change: `first`, `second` or `both`.
    """

    name: str
    is_read: Callable[["Method"], bool]
    reason: str = ""
    choices: tuple[str, ...] = ()
    in_range: Callable[[Any], bool] = lambda value: True
    range: str = ""
    stages: str = "first"

    def check(self, value: Any) -> None:
        """Refuse a value that the part cannot have."""
        if self.choices:
            check_choice(self.name, value, self.choices)
        elif not (isinstance(value, Real) and not isinstance(value, bool) and self.in_range(value)):
            raise ValueError(f"{self.name} is {value!r:.100}; it must be {self.range}.")

    def refuse_without_effect(self, value: Any, method: "Method", name: str) -> None:
        """Say why `value` would have no effect under `method`, called `name`."""
        raise ValueError(
            f"{self.name} is {value!r}, which would have no effect under method {name!r}: "
            f"{self.reason.format(m=method)}. Remove it or choose another method."
        )


def _floor_binds(m: "Method") -> bool:
    """Can a trusted token's K1 advantage be below the floor?"""
    if m.trust != "k1" or m.gate == "closed" or m.advantage != "log_ratio":
        return False
    bounded = m.gate in ("hard", "floor") and m.outlier_tau is not None and m.advantage_floor is not None
    return not (bounded and m.advantage_floor <= m.outlier_tau)  # type: ignore[operator]


_FKL = "it has no top-k forward KL"
_GUIDANCE = "it has no guidance; set `guidance_schedule` first"

_TABLE = (
    Setting(
        "gate",
        lambda m: m.gate in TRUST_GATES,
        "it has no trust gate: its tokens are split by `gate: {m.gate}`",
        choices=TRUST_GATES,
    ),
    Setting(
        "support",
        lambda m: m.gate == "support",
        "it has no support: its tokens are split by `gate: {m.gate}`",
        choices=SUPPORTS,
    ),
    Setting(
        "outlier",
        lambda m: m.gate in (*TRUST_GATES, "closed", "support"),
        "its tokens are split by `gate: {m.gate}`, which leaves no outliers",
        choices=OUTLIERS,
    ),
    Setting(
        "outlier_tau",
        lambda m: m.gate in ("hard", "floor") or m.outlier in ("clip", "rkl_direct"),
        "only the `hard` gate and the outlier treatments `clip` and `rkl_direct` read it",
        in_range=lambda t: t == t and t < float("inf"),
        range="a number of nats (-inf trusts every token)",
    ),
    Setting(
        "advantage_floor",
        _floor_binds,
        "it bounds r of trusted tokens under K1; here there are none, or they are already bounded",
        in_range=lambda t: t == t and t <= 0,
        range="a number of nats, at most 0",
        stages="second",
    ),
    Setting(
        "advantage",
        lambda m: m.trust == "k1" and m.gate != "closed",
        "it has no trusted token under K1",
        choices=ADVANTAGES,
        stages="both",
    ),
    Setting(
        "advantage_alpha",
        lambda m: m.advantage in ("mixture", "power"),
        "only the advantages `mixture` and `power` read it",
        in_range=lambda a: 0 < a < float("inf"),
        range="above 0, and finite",
        stages="both",
    ),
    Setting(
        "advantage_scale",
        lambda m: m.trust == "k1" and m.gate != "closed",
        "it has no trusted token under K1",
        choices=ADVANTAGE_SCALES,
        stages="both",
    ),
    Setting(
        "baseline",
        lambda m: m.trust == "k1" and m.gate == "open",
        "a baseline needs K1 on every token; on only some tokens it would change the expected gradient",
        choices=BASELINES,
    ),
    Setting(
        "fkl_top_k",
        lambda m: m.needs_topk or m.support == "union",
        "it does not use the teacher's top-k",
        in_range=lambda k: isinstance(k, Integral) and 1 <= int(k) < 2**31,
        range="a whole number of at least 1",
    ),
    Setting("fkl_truncation", lambda m: m.outlier_uses_fkl, _FKL, choices=TRUNCATIONS),
    Setting(
        "fkl_weight",
        lambda m: m.outlier_uses_fkl,
        _FKL,
        in_range=lambda w: 0 < w < float("inf"),
        range="above 0, and finite",
    ),
    Setting(
        "entropy_share",
        lambda m: m.gate == "student_entropy",
        "it does not select tokens by the student's entropy",
        in_range=lambda s: 0 < s <= 1,
        range="in (0, 1]",
        stages="second",
    ),
    Setting(
        "teacher_entropy_tau",
        lambda m: m.gate == "teacher_entropy",
        "it does not use the teacher's entropy",
        in_range=lambda t: t >= 0,
        range="at least 0 nats (inf selects no token)",
    ),
    Setting(
        "jsd_beta",
        lambda m: m.trust in ("jsd", "gkd"),
        "it has no Jensen-Shannon mixture",
        in_range=lambda b: 0 <= b <= 1,
        range="in [0, 1]",
    ),
    Setting(
        "ratio_clip",
        lambda m: m.trust != "gkd" and (m.gate != "closed" or m.outlier == "fkl_scalar"),
        "it has no policy gradient",
        in_range=lambda e: 0 < e < 1,
        range="in (0, 1)",
        stages="both",
    ),
    Setting("guidance_schedule", lambda m: True, choices=SCHEDULES, stages="both"),
    Setting("guidance_length", lambda m: m.guided, _GUIDANCE, choices=PREFIX_READINGS, stages="both"),
    Setting(
        "guidance_beta",
        lambda m: m.guided,
        _GUIDANCE,
        in_range=lambda b: 0 <= b < float("inf"),
        range="at least 0, and finite",
        stages="both",
    ),
    Setting("guidance_term", lambda m: m.guided, _GUIDANCE, choices=GUIDANCE_TERMS, stages="both"),
    Setting("reduction", lambda m: True, choices=REDUCTIONS, stages="both"),
    Setting("turn_trust", lambda m: True, choices=TURN_TRUSTS, stages="both"),
    Setting(
        "switch_at",
        lambda m: m.second_stage is not None,
        "it has one phase",
        in_range=lambda s: 0 <= s <= 1,
        range="a fraction of training in [0, 1]",
    ),
)

BY_NAME = {setting.name: setting for setting in _TABLE}

# What a method of one's own may be built from, beyond what a change may choose.
_WHOLE_CHOICES = {"gate": GATES, "trust": TRUSTS, "outlier": (*OUTLIERS, "k1_and_fkl")}
_NEEDED = {"student_entropy": "entropy_share", "teacher_entropy": "teacher_entropy_tau"}


def check_change(name: str, value: Any) -> None:
    """Refuse a name that is no setting, or a value that it cannot have."""
    if name not in BY_NAME:
        raise ValueError(f"{name} is not a setting of a method{hint(name, BY_NAME)}.")
    BY_NAME[name].check(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the part's choices."""
    if not (isinstance(value, str) and value in choices):
        near = hint(str(value), choices)
        raise ValueError(f"{name} is {value!r:.100}{near}. Choose one of: {', '.join(choices)}.")


def check_types(method: "Method") -> None:
    """Refuse a value of another kind than its part has, before anything is asked of the method."""
    for part in fields(method):
        value = getattr(method, part.name)
        if part.name in ("name", "summary", "source") and not isinstance(value, str):
            raise ValueError(f"{part.name} is {value!r:.100}; it must be text.")
        if value is None and part.default is None:
            continue
        if part.name in _WHOLE_CHOICES:
            check_choice(part.name, value, _WHOLE_CHOICES[part.name])
        elif part.name in BY_NAME:
            BY_NAME[part.name].check(value)


def check_parts(method: "Method") -> None:
    """Refuse parts of a whole method that have values they cannot have, or no effect."""
    for name, choices in _WHOLE_CHOICES.items():
        check_choice(name, getattr(method, name), choices)
    needed = _NEEDED.get(method.gate) or ("jsd_beta" if method.trust in ("jsd", "gkd") else None)
    if needed and getattr(method, needed) is None:
        raise ValueError(f"{needed} is None, but gate {method.gate!r} with trust {method.trust!r} needs it. Set it.")
    for part in fields(method):
        value = getattr(method, part.name)
        if part.name in _WHOLE_CHOICES or part.name not in BY_NAME or value is None or value == part.default:
            continue
        BY_NAME[part.name].check(value)
        if not BY_NAME[part.name].is_read(method):
            BY_NAME[part.name].refuse_without_effect(value, method, method.name)


def check_combination(method: "Method") -> None:
    """Refuse combinations of parts that cannot work together."""
    same = {"mask": "nothing would be learned", "clip": "that is method 'reopold'", "k1": "that is method 'opd'"}
    if method.gate == "closed" and method.outlier in same:
        raise ValueError(
            f"outlier is {method.outlier!r} under method {method.name!r}, whose gate trusts no token: "
            f"{same[method.outlier]}. Choose fkl_direct, fkl_scalar or rkl_direct."
        )
    if (method.gate == "support") != (method.trust == "rkl_direct"):
        raise ValueError(
            f"gate is {method.gate!r} and trust is {method.trust!r}: trust rkl_direct, reverse KL on the teacher's "
            "top-k, needs gate support, which splits the tokens by that top-k. Set both, or neither."
        )
    if method.trust != "k1" and method.outlier_uses_topk:
        raise ValueError(
            f"outlier is {method.outlier!r} with trust {method.trust!r}: only one divergence of a token can be "
            "differentiated directly. Choose outlier mask, clip or k1, or trust k1."
        )
    if method.advantage == "mixture" and (method.advantage_alpha or 0.0) > 1:
        raise ValueError(
            f"advantage_alpha is {method.advantage_alpha}; the mixture of teacher and student needs a share of the "
            "teacher in (0, 1]."
        )
    for stage in (method, method.second_stage):
        if stage is not None and stage.baseline != "none" and stage.advantage != "log_ratio":
            raise ValueError(
                f"baseline is {stage.baseline!r} with advantage {stage.advantage!r}: it is the mean of −r, so it "
                "belongs to advantage log_ratio. Set that, or baseline none."
            )
        if stage is not None and stage.advantage_scale != "none" and stage.advantage != "sign":
            raise ValueError(
                f"advantage_scale is {stage.advantage_scale!r} with advantage {stage.advantage!r}: TV-OPD's "
                "coefficient is for the sign of r, which does not shrink as the student approaches the teacher. Set "
                "advantage sign, or advantage_scale none."
            )
    if method.trust == "jsd" and method.jsd_beta in (0.0, 1.0):
        raise ValueError(
            f"jsd_beta is {method.jsd_beta}; the hybrid JSD needs a mixture, 0 < jsd_beta < 1. For pure forward or "
            "reverse KL choose method 'fkl' or 'opd'."
        )
    if method.reduction == "selected" and method.guided:
        raise ValueError(
            "reduction is 'selected', a mean over only the trusted tokens, but guidance adds prefix tokens to the "
            "loss; choose 'shared', 'per_region' or 'per_turn', or guidance_schedule 'none'."
        )
    _check_stages(method)


def _check_stages(method: "Method") -> None:
    later = method.second_stage
    if (later is None) != (method.switch_at is None):
        raise ValueError(
            f"switch_at is {method.switch_at!r} and second_stage is {'not ' if later else ''}None: a method with two "
            "stages needs both, a method with one stage neither."
        )
    if later is None:
        return
    if later.second_stage is not None:
        raise ValueError(f"second_stage of method {method.name!r} has its own second stage; at most two are possible.")
    if later.guided != method.guided:
        raise ValueError(
            f"guidance_schedule is {method.guidance_schedule!r} in the first stage and {later.guidance_schedule!r} in "
            "the second: teacher prefixes are used in the whole run or not at all. Give both stages guidance, or "
            "neither."
        )
