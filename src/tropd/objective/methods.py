"""Every method as data for the region machinery: which tokens, which estimator, which numbers.

A `Method` says how a student token is gated into *trust* or *outlier*, what is learned from it there, and whether
teacher prefixes guide the rollout. `METHODS` holds the published settings under the papers' names; `get_method` changes
parts of one and refuses a change that would have no effect. This file imports no torch, so that listing is quick.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from ..suggestions import hint

DEFAULT_OUTLIER_TAU = -2.0
"""τ in nats of the static outlier treatments. Not published for TrOPD's Clip and Mask; ours lies between REOPOLD's
two floors (−1.72 and −2.56)."""

GATES = ("open", "closed", "bernoulli", "expected", "hard", "floor", "student_entropy", "teacher_entropy")
TRUST_GATES = ("bernoulli", "expected", "hard")
OUTLIERS = ("fkl_direct", "fkl_scalar", "mask", "clip")
REDUCTIONS = ("shared", "per_region", "selected")
TRUNCATIONS = ("none", "teacher_renorm", "tail")
SCHEDULES = ("cosine", "linear", "constant", "none")
PREFIX_READINGS = ("cap", "share")


@dataclass(frozen=True)
class Method:
    """How each kind of token is learned from. Build one with `get_method`.

    >>> METHODS["tropd"].gate, METHODS["tropd"].outlier, METHODS["tropd"].guided
    ('bernoulli', 'fkl_direct', True)

    Attributes:
        name: what the papers call it.
        summary: one line for people.
        source: paper and section.
        gate: how student tokens are split: `open` (all trusted), `closed` (none), `bernoulli`, `expected`, `hard`
            (r > τ), `floor` (r ≥ τ), `student_entropy` (the top `entropy_share` of the batch is trusted),
            `teacher_entropy` (H_T > `teacher_entropy_tau` is the outlier region).
        trust: estimator on trusted tokens: `k1` policy gradient, `jsd` (the paper's hybrid), `gkd` (full vocabulary).
        outlier: on the others: `fkl_direct`, `fkl_scalar`, `mask`, `clip` (K1 with max(r, τ)), `k1_and_fkl` (EOPD).
        outlier_tau: τ, nats of r.
        advantage_floor: lower bound of the trusted tokens' K1 advantage in nats (REOPOLD phase II), or `None`.
        fkl_top_k: k of the teacher's top-k.
        fkl_truncation: `none` (as printed), `teacher_renorm` or `tail`.
        fkl_weight: factor of the forward-KL term (EOPD's α).
        entropy_share: share of tokens with the highest student entropy that are trusted.
        teacher_entropy_tau: nats.
        jsd_beta: β of the mixture π_M = β π_T + (1−β) π_S; for `gkd`, 0 is forward and 1 is reverse KL.
        ratio_clip: PPO's ε for several updates per batch, or `None`.
        guidance_schedule: how the teacher prefix is annealed: `cosine`, `linear`, `constant`, `none`.
        guidance_length: reading of the schedule: `cap`, min(⌊α·L_max⌋, L), or `share`, ⌊α·L⌋.
        guidance_beta: β of the prefix's negative log-likelihood.
        reduction: `shared` (one mean over student and prefix tokens), `per_region` (a mean for each region, summed),
            `selected` (the mean over trusted tokens alone, REOPOLD).
        second_stage: the method that takes over, or `None`.
        switch_at: fraction of training at which it does.
    """

    name: str
    summary: str
    source: str
    gate: str
    trust: str = "k1"
    outlier: str = "mask"
    outlier_tau: float | None = None
    advantage_floor: float | None = None
    fkl_top_k: int | None = None
    fkl_truncation: str | None = None
    fkl_weight: float = 1.0
    entropy_share: float | None = None
    teacher_entropy_tau: float | None = None
    jsd_beta: float | None = None
    ratio_clip: float | None = None
    guidance_schedule: str = "none"
    guidance_length: str = "cap"
    guidance_beta: float | None = None
    reduction: str = "shared"
    second_stage: "Method | None" = None
    switch_at: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                _check_part(field.name, value, _PARTS)
            if field.name in ("name", "summary", "source") and not isinstance(value, str):
                raise ValueError(f"{field.name} is {value!r:.100}; it must be text.")
        if self.second_stage is not None and not isinstance(self.second_stage, Method):
            raise ValueError(f"second_stage is {self.second_stage!r:.100}; it must be a Method, or None.")

    @property
    def guided(self) -> bool:
        """Does a teacher prefix start the rollouts?"""
        return self.guidance_schedule != "none"

    @property
    def outlier_uses_fkl(self) -> bool:
        return self.gate != "open" and self.outlier in ("fkl_direct", "fkl_scalar", "k1_and_fkl")

    @property
    def needs_topk(self) -> bool:
        """Must the teacher be asked for its top-k on some tokens?"""
        return self.outlier_uses_fkl or self.trust == "jsd"

    @property
    def needs_full_teacher(self) -> bool:
        """Must the teacher's whole distribution be at hand in the loss?"""
        return self.trust == "gkd"

    def stage(self, progress: float) -> "Method":
        """The method in force at `progress` in [0, 1] through training."""
        if self.second_stage is None or self.switch_at is None or progress < self.switch_at:
            return self
        return self.second_stage


_CHOICES: dict[str, tuple[str, ...]] = {
    "gate": TRUST_GATES,
    "outlier": OUTLIERS,
    "fkl_truncation": TRUNCATIONS,
    "reduction": REDUCTIONS,
    "guidance_schedule": SCHEDULES,
    "guidance_length": PREFIX_READINGS,
}

# The same of a method as a whole, which has parts that no setting changes.
_PARTS = _CHOICES | {"gate": GATES, "trust": ("k1", "jsd", "gkd"), "outlier": (*OUTLIERS, "k1_and_fkl")}

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fkl_top_k": (lambda k: isinstance(k, Integral) and 1 <= int(k) < 2**31, "a whole number of at least 1"),
    "fkl_weight": (lambda w: 0 < w < float("inf"), "above 0, and finite"),
    "outlier_tau": (lambda t: t == t and t < float("inf"), "a number of nats (-inf trusts every token)"),
    "advantage_floor": (lambda t: t == t and t <= 0, "a number of nats, at most 0"),
    "entropy_share": (lambda s: 0 < s <= 1, "in (0, 1]"),
    "teacher_entropy_tau": (lambda t: t >= 0, "at least 0 nats (inf selects no token)"),
    "jsd_beta": (lambda b: 0 <= b <= 1, "in [0, 1]"),
    "ratio_clip": (lambda e: 0 < e < 1, "in (0, 1)"),
    "guidance_beta": (lambda b: 0 <= b < float("inf"), "at least 0, and finite"),
    "switch_at": (lambda s: 0 <= s <= 1, "a fraction of training in [0, 1]"),
}


def _check_part(key: str, value: Any, choices: dict[str, tuple[str, ...]]) -> None:
    if key in choices and not (isinstance(value, str) and value in choices[key]):
        raise ValueError(
            f"{key} is {value!r:.100}{hint(str(value), choices[key])}. Choose one of: {', '.join(choices[key])}."
        )
    if key in _RANGES and not (_is_number(value) and _RANGES[key][0](value)):
        raise ValueError(f"{key} is {value!r:.100}; it must be {_RANGES[key][1]}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


_FKL: dict[str, Any] = {"fkl_top_k": 64, "fkl_truncation": "none"}
_GUIDANCE: dict[str, Any] = {"guidance_schedule": "cosine", "guidance_beta": 0.001}
_TROPD = "TrOPD, arXiv 2606.01249"
_REOPOLD = "REOPOLD, arXiv 2603.11137"


def _reopold_2stage() -> Method:
    floor = -1.72  # log λ / (1 − λ) at λ = 0.3
    explore = Method(
        "reopold_2stage",
        "phase II: K1 with max(r, floor) on the tokens of highest student entropy",
        f"{_REOPOLD}, phase II",
        gate="student_entropy",
        entropy_share=0.2,
        advantage_floor=floor,
        reduction="selected",
    )
    return Method(
        "reopold_2stage",
        "K1 where r ≥ floor, then K1 with max(r, floor) on the 20% of highest entropy",
        f"{_REOPOLD}, two stages",
        gate="floor",
        outlier_tau=floor,
        reduction="selected",
        second_stage=explore,
        switch_at=0.4,
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("opd", "K1 policy gradient on every token", "Thinking Machines, Oct 2025", gate="open"),
        Method(
            "gkd",
            "full-vocabulary divergence on every student token (jsd_beta 0 forward, 1 reverse)",
            "GKD, arXiv 2306.13649",
            gate="open",
            trust="gkd",
            jsd_beta=1.0,
        ),
        Method("fkl", "top-k forward KL on every token", _TROPD, gate="closed", outlier="fkl_direct", **_FKL),
        Method("jsd", "hybrid JSD on every token", _TROPD, gate="open", trust="jsd", jsd_beta=0.5, fkl_top_k=64),
        Method(
            "entropy_opd",
            "K1 on the 20% of tokens with the highest student entropy",
            _TROPD,
            gate="student_entropy",
            entropy_share=0.2,
        ),
        Method(
            "eopd",
            "K1 everywhere, and top-k forward KL added where the teacher's entropy is high",
            "EOPD, arXiv 2603.07079",
            gate="teacher_entropy",
            outlier="k1_and_fkl",
            teacher_entropy_tau=0.8,
            fkl_top_k=16,
            fkl_truncation="teacher_renorm",
            ratio_clip=0.2,
        ),
        Method("reopold", "K1 with max(r, τ)", f"{_TROPD} (clip)", "hard", outlier="clip", outlier_tau=-2.0),
        _reopold_2stage(),
        Method("mask_outlier", "K1 where r > τ, nothing elsewhere", _TROPD, gate="hard", outlier_tau=-2.0),
        Method(
            "fkl_outlier",
            "K1 in the trust region, top-k forward KL on outliers",
            _TROPD,
            gate="bernoulli",
            outlier="fkl_direct",
            **_FKL,
        ),
        Method(
            "tropd_mask",
            "K1 in the trust region, nothing on outliers, teacher prefixes",
            _TROPD,
            gate="bernoulli",
            **_GUIDANCE,
        ),
        Method(
            "tropd_clip",
            "K1 with max(r, τ), teacher prefixes",
            _TROPD,
            gate="hard",
            outlier="clip",
            outlier_tau=-2.0,
            **_GUIDANCE,
        ),
        Method(
            "tropd",
            "K1 in the trust region, top-k forward KL on outliers, teacher prefixes: the paper as printed",
            _TROPD,
            gate="bernoulli",
            outlier="fkl_direct",
            **_FKL,
            **_GUIDANCE,
        ),
        Method(
            "tropd_share",
            "tropd with the prefix a share of each teacher response, and its NLL weighed at 0.1",
            "ours, from TrOPD's parts (docs/results.md)",
            gate="bernoulli",
            outlier="fkl_direct",
            guidance_schedule="cosine",
            guidance_length="share",
            guidance_beta=0.1,
            **_FKL,
        ),
        Method(
            "aopd",
            "K1 where r > 0, top-k forward KL elsewhere",
            "AOPD, arXiv 2605.06387",
            gate="hard",
            outlier="fkl_direct",
            outlier_tau=0.0,
            **_FKL,
        ),
    )
}

# Where each setting has an effect, and the reason given when it has none.
_RELEVANT: dict[str, tuple[Callable[[Method], bool], str]] = {
    "gate": (
        lambda m: m.gate in TRUST_GATES,
        "it has no trust gate: its tokens are split by `gate: {m.gate}`",
    ),
    "outlier": (
        lambda m: m.gate in (*TRUST_GATES, "closed"),
        "its tokens are split by `gate: {m.gate}`, which leaves no outliers to treat",
    ),
    "outlier_tau": (
        lambda m: m.gate in ("hard", "floor") or m.outlier == "clip",
        "only the `hard` gate and the `clip` outlier treatment read it",
    ),
    "advantage_floor": (lambda m: m.second_stage is not None, "only `reopold_2stage` has a second phase"),
    "fkl_top_k": (lambda m: m.needs_topk, "it never asks the teacher for a top-k"),
    "fkl_truncation": (lambda m: m.outlier_uses_fkl, "it has no top-k forward KL"),
    "fkl_weight": (lambda m: m.outlier_uses_fkl, "it has no top-k forward KL"),
    "entropy_share": (
        lambda m: "student_entropy" in (m.gate, m.second_stage.gate if m.second_stage else ""),
        "it does not select tokens by the student's entropy",
    ),
    "teacher_entropy_tau": (
        lambda m: m.gate == "teacher_entropy",
        "it does not look at the teacher's entropy",
    ),
    "jsd_beta": (lambda m: m.trust in ("jsd", "gkd"), "it has no Jensen-Shannon mixture"),
    "ratio_clip": (
        lambda m: m.trust != "gkd" and (m.gate != "closed" or m.outlier == "fkl_scalar"),
        "it has no policy gradient",
    ),
    "guidance_schedule": (lambda m: True, ""),
    "guidance_length": (lambda m: m.guided, "it has no guidance; set `guidance_schedule` first"),
    "guidance_beta": (lambda m: m.guided, "it has no guidance; set `guidance_schedule` first"),
    "reduction": (lambda m: True, ""),
    "switch_at": (lambda m: m.second_stage is not None, "it has one phase"),
}

# Of a two-stage method; what is in neither belongs to the first stage.
_OF_SECOND_STAGE = ("entropy_share", "advantage_floor")
_OF_BOTH_STAGES = ("reduction", "ratio_clip", "guidance_schedule", "guidance_length", "guidance_beta")

SETTINGS = tuple(_RELEVANT)
"""The parts of a method that may be changed."""


def get_method(name: str, **changes: Any) -> Method:
    """The method called `name`, with some of its parts changed.

    >>> get_method("tropd", gate="expected").gate
    'expected'

    Args:
        name: a key of `METHODS`.
        changes: new values for `SETTINGS`; `None` keeps the method's own.

    Raises:
        ValueError: an unknown name or setting, a value out of range, or a setting that the method would never read;
            the sentence says what to type instead.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"method is {name!r:.100}, which is unknown{hint(str(name), METHODS)}. Known: {', '.join(METHODS)}."
        )
    changes = {key: value for key, value in changes.items() if value is not None}
    for key, value in changes.items():
        _check_value(key, value)
    method = _with_defaults(_apply(METHODS[name], changes))
    for key in changes:
        relevant, reason = _RELEVANT[key]
        # A gate may replace another trust gate only, so it is asked of the method as published.
        if not relevant(METHODS[name] if key == "gate" else method):
            raise ValueError(
                f"{key} is {changes[key]!r}, which would have no effect under method {name!r}: "
                f"{reason.format(m=METHODS[name])}. Remove it or choose another method."
            )
    _check_whole(method)
    return method


def _apply(method: Method, changes: dict[str, Any]) -> Method:
    stage_two = method.second_stage
    if stage_two is None:
        return replace(method, **changes)
    later = {key: value for key, value in changes.items() if key in _OF_BOTH_STAGES or key in _OF_SECOND_STAGE}
    if "outlier_tau" in changes:
        later.setdefault("advantage_floor", min(changes["outlier_tau"], 0.0))
    first = {key: value for key, value in changes.items() if key not in _OF_SECOND_STAGE}
    return replace(method, **first, second_stage=_with_defaults(replace(stage_two, **later)))


def _with_defaults(method: Method) -> Method:
    """Fill what a changed part newly needs with the published default."""
    filled: dict[str, Any] = {}
    if method.outlier_tau is None and (method.gate in ("hard", "floor") or method.outlier == "clip"):
        filled["outlier_tau"] = DEFAULT_OUTLIER_TAU
    if method.needs_topk and method.fkl_top_k is None:
        filled["fkl_top_k"] = 64
    if method.outlier_uses_fkl and method.fkl_truncation is None:
        filled["fkl_truncation"] = "none"
    if method.guided and method.guidance_beta is None:
        filled["guidance_beta"] = 0.001
    return replace(method, **filled)


def _check_value(key: str, value: Any) -> None:
    if key not in _RELEVANT:
        raise ValueError(f"{key} is not a setting of a method{hint(key, _RELEVANT)}.")
    _check_part(key, value, _CHOICES)


def _check_whole(method: Method) -> None:
    """Refuse combinations of parts that cannot work together."""
    if method.gate == "closed" and method.outlier in ("mask", "clip"):
        raise ValueError(
            f"outlier is {method.outlier!r} under method {method.name!r}, whose gate trusts no token: "
            + ("nothing would be learned" if method.outlier == "mask" else "that is method 'reopold'")
            + ". Choose fkl_direct or fkl_scalar."
        )
    if method.trust == "jsd" and method.jsd_beta in (0.0, 1.0):
        raise ValueError(
            f"jsd_beta is {method.jsd_beta}; the hybrid JSD needs a mixture, 0 < jsd_beta < 1. For pure forward or "
            "reverse KL choose method 'fkl' or 'opd'."
        )
    if method.reduction == "selected" and method.guided:
        raise ValueError(
            "reduction is 'selected', a mean over trusted tokens alone, but guidance adds prefix tokens to the loss; "
            "choose 'shared' or 'per_region', or guidance_schedule 'none'."
        )


def describe(method: Method) -> dict[str, Any]:
    """The method's settings as plain data for a run directory: what is set, nested for a second stage.

    >>> {key: value for key, value in describe(METHODS["opd"]).items() if key not in ("summary", "source")}["gate"]
    'open'
    """
    plain = {field.name: getattr(method, field.name) for field in fields(method)}
    if method.second_stage is not None:
        plain["second_stage"] = describe(method.second_stage)
    return {key: value for key, value in plain.items() if value is not None}
