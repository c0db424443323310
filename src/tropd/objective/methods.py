"""Every method as data for the region machinery: which tokens, which estimator, which numbers.

A `Method` says how a student token is gated into *trust* or *outlier*, what is learned from it there, and whether
teacher prefixes guide the rollout. `METHODS` holds the published settings under the papers' names; `get_method` changes
parts of one and refuses a change that would have no effect; `register_method` adds one of your own. This file imports
no torch, so that listing is quick.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from ..own_code import import_own
from ..suggestions import hint
from .method_parts import BY_NAME, check_change, check_combination, check_parts, check_types

SETTINGS = tuple(BY_NAME)
"""The settings of a method that may be changed."""

DEFAULT_OUTLIER_TAU = -2.0
"""τ in nats of the static outlier treatments. Not published for TrOPD's Clip and Mask; ours lies between REOPOLD's
two floors (−1.72 and −2.56)."""

DEFAULT_ALPHAS = {"mixture": 0.2, "power": 5.0}
"""α of TOP-D (arXiv 2607.04751) and PowerOPD (arXiv 2606.17199)."""


@dataclass(frozen=True)
class Method:
    """How each kind of token is learned from. `get_method` changes one, `register_method` takes one of your own.

    >>> METHODS["tropd"].gate, METHODS["tropd"].outlier, METHODS["tropd"].guided
    ('bernoulli', 'fkl_direct', True)

    Attributes:
        name: what the papers call it.
        summary: one line for people.
        source: paper and section.
        gate: how student tokens are split: `open` (all trusted), `closed` (none), `bernoulli`, `expected`, `hard`
            (r > τ), `floor` (r ≥ τ), `student_entropy` (the top `entropy_share` of the batch is trusted),
            `teacher_entropy` (H_T > `teacher_entropy_tau` is the outlier region), `support` (tokens among the
            teacher's top-k are trusted).
        trust: estimator on trusted tokens: `k1` policy gradient, `jsd` (the paper's hybrid), `gkd` (full vocabulary),
            `rkl_direct` (reverse KL on a support and one bucket for the rest, on every student token).
        support: of gate `support`: `teacher`, its top-k; `union`, that joined with the student's top-k, which needs the
            teacher's whole distribution and counts every token as trusted.
        outlier: on the others: `fkl_direct`, `fkl_scalar`, `rkl_direct` (reverse KL on the teacher's top-k and one
            bucket, whose log ratio is clipped at τ), `mask`, `clip` (K1 with max(r, τ)), `k1`, `k1_and_fkl` (EOPD).
            Beside trust `rkl_direct`, `clip` bounds the bucket's log ratio, too.
        outlier_tau: τ, nats of r.
        advantage_floor: lower bound of the trusted tokens' K1 advantage in nats (REOPOLD phase II), or `None`. In a
            two-stage method, changing this or `entropy_share` changes the second stage.
        advantage: what K1 learns from on trusted tokens: `log_ratio` (r), `mixture`, log(α ρ + 1 − α), `power`,
            π_T^α − π_S^α, or `sign`, that of r.
        advantage_alpha: α of `mixture` and `power`.
        advantage_scale: `total_variation` multiplies the `sign` by TV-OPD's coefficient of the batch, see
            `AdvantageScale`; or `none`.
        baseline: what is added to every advantage of a state: `none`; `full`, the reverse KL of its whole
            distributions; `top_k`, that of the teacher's top-k and one bucket for the rest. Detached.
        fkl_top_k: k of the teacher's top-k.
        fkl_truncation: `none` (as printed), `teacher_renorm` or `tail`.
        fkl_weight: factor of the forward-KL term (EOPD's α).
        entropy_share: share of tokens with the highest student entropy that are trusted.
        teacher_entropy_tau: nats.
        jsd_beta: β of the mixture π_M = β π_T + (1−β) π_S; for `gkd`, 0 is forward and 1 is reverse KL.
        ratio_clip: PPO's ε for several updates per batch, or `None`.
        guidance_schedule: how the teacher prefix is annealed: `cosine`, `linear`, `constant`, `none`.
        guidance_length: reading of the schedule: `cap`, min(⌊α·L_max⌋, L), or `share`, ⌊α·L⌋.
        guidance_beta: β of the prefix's term.
        guidance_term: of a prefix token: `nll`, its negative log-likelihood, or `k1`, a policy gradient with the
            detached advantage log π_S − log π_T.
        reduction: `shared` (one mean over student and prefix tokens), `per_region` (a mean for each region, summed),
            `per_turn` (in each episode, the mean over its turns of their means), `selected` (the mean over trusted
            tokens alone, REOPOLD).
        turn_trust: `weight` multiplies what is learned from the teacher in a turn by the mean acceptance, min(ρ, 1), of
            the episode before it; or `none`.
        second_stage: the method that takes over, or `None`.
        switch_at: fraction of training at which it does.
    """

    name: str
    summary: str
    source: str
    gate: str
    trust: str = "k1"
    support: str = "teacher"
    outlier: str = "mask"
    outlier_tau: float | None = None
    advantage_floor: float | None = None
    advantage: str = "log_ratio"
    advantage_alpha: float | None = None
    advantage_scale: str = "none"
    baseline: str = "none"
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
    guidance_term: str = "nll"
    reduction: str = "shared"
    turn_trust: str = "none"
    second_stage: "Method | None" = None
    switch_at: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.second_stage is not None and not isinstance(self.second_stage, Method):
            raise ValueError(f"second_stage is {self.second_stage!r:.100}; it must be a Method, or None.")

    @cached_property
    def guided(self) -> bool:
        """Does a teacher prefix start the rollouts?"""
        return self.guidance_schedule != "none"

    @cached_property
    def outlier_uses_fkl(self) -> bool:
        return self.gate != "open" and self.outlier in ("fkl_direct", "fkl_scalar", "k1_and_fkl")

    @cached_property
    def outlier_uses_topk(self) -> bool:
        return self.outlier_uses_fkl or (self.gate != "open" and self.outlier == "rkl_direct")

    @cached_property
    def compares_support(self) -> bool:
        """Is reverse KL on a support differentiated, on trusted tokens or on the others?"""
        return self.trust == "rkl_direct" or (self.outlier_uses_topk and self.outlier == "rkl_direct")

    @cached_property
    def needs_topk(self) -> bool:
        """Must the teacher be asked for its top-k on some tokens?"""
        if self.support == "union":
            return False
        return self.outlier_uses_topk or self.trust in ("jsd", "rkl_direct") or self.baseline == "top_k"

    @cached_property
    def needs_full_teacher(self) -> bool:
        """Must the teacher's whole distribution be at hand in the loss?"""
        return self.trust == "gkd" or self.baseline == "full" or self.support == "union"

    def stage(self, progress: float) -> "Method":
        """The method in force at `progress` in [0, 1] through training."""
        if self.second_stage is None or self.switch_at is None or progress < self.switch_at:
            return self
        return self.second_stage


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
            "tropd with the prefix as a share of each teacher response, and its NLL weighted by 0.1",
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
        Method(
            "vopd",
            "K1 on every token, with the state's reverse KL as a baseline: opd's expectation, less noise",
            "vOPD, arXiv 2605.07865",
            gate="open",
            baseline="full",
        ),
        Method(
            "mixture_opd",
            "K1 with log(α ρ + 1 − α): towards the mixture of teacher and student",
            "TOP-D, arXiv 2607.04751 (NeMo-RL's TROPD)",
            gate="open",
            advantage="mixture",
            advantage_alpha=0.2,
        ),
        Method(
            "tv_opd",
            "K1 with the sign of r: total variation, in smaller steps as it falls",
            "TV-OPD, arXiv 2609.08341",
            gate="open",
            advantage="sign",
            advantage_scale="total_variation",
        ),
        Method(
            "power_opd",
            "K1 with π_T^α − π_S^α of the token",
            "PowerOPD, arXiv 2606.17199",
            gate="open",
            advantage="power",
            advantage_alpha=5.0,
        ),
        Method(
            "tropd_released",
            "the authors' code according to one note: scalar forward KL, and prefixes pushed down",
            "a note on TrOPD, version 3 (docs/equations.md)",
            gate="bernoulli",
            outlier="fkl_scalar",
            fkl_top_k=64,
            fkl_truncation="teacher_renorm",
            guidance_length="share",
            guidance_term="k1",
            **_GUIDANCE,
        ),
        Method(
            "resopd",
            "reverse KL, exact on the teacher's top-k and sampled in the tail: gkd's expectation",
            "ResOPD, arXiv 2610.04882",
            gate="support",
            trust="rkl_direct",
            outlier="k1",
            fkl_top_k=4,
        ),
        Method(
            "tropd_support",
            "reverse KL, exact on the teacher's top-k, clipped elsewhere",
            "ours, from ResOPD and TrOPD's clip (docs/equations.md)",
            gate="support",
            trust="rkl_direct",
            outlier="clip",
            outlier_tau=-2.0,
            fkl_top_k=16,
        ),
    )
}


def register_method(method: Method) -> Method:
    """Add a method of your own to `METHODS`, so that `TrOPDConfig(method=...)` and `get_method` know its name.

    It holds for this process; a file or a command line names one by `package.module:NAME` instead, see
    docs/add_a_method.md.

    >>> cautious = Method("cautious", "K1 with max(r, −3)", "ours", gate="open", advantage_floor=-3.0)
    >>> register_method(cautious) is METHODS.pop("cautious")
    True

    Returns:
        The method as it is registered: a part that it reads and that is `None` has its default.

    Raises:
        ValueError: the name is taken by another method, or is no plain word; or a part has a value it cannot have, no
            effect, or does not go with the others.
    """
    method = _complete(method)
    METHODS[method.name] = method
    return method


def get_method(name: str, **changes: Any) -> Method:
    """The method called `name`, with some of its parts changed.

    >>> get_method("tropd", gate="expected").gate
    'expected'

    Args:
        name: a key of `METHODS`, or `package.module:NAME`, a `Method` that Python can import.
        changes: new values for `SETTINGS`; `None` keeps the method's own.

    Raises:
        ValueError: an unknown name or setting, a value out of range, or a setting that the method would never read;
            the sentence says what to type instead.
    """
    published = _find(name)
    changes = {key: value for key, value in changes.items() if value is not None}
    for key, value in changes.items():
        check_change(key, value)
    method = _with_defaults(_apply(published, changes))
    for key, value in changes.items():
        # A gate may replace another trust gate only, so it is asked of the method as published.
        stages = [published] if key == "gate" else _stages_for(key, method)
        if not any(BY_NAME[key].is_read(stage) for stage in stages):
            BY_NAME[key].refuse_without_effect(value, published, name)
    check_combination(method)
    return method


def _find(name: str) -> Method:
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    if isinstance(name, str) and ":" in name:
        return _import_method(name)
    raise ValueError(
        f"method is {name!r:.100}, which is unknown{hint(str(name), METHODS)}. Known: {', '.join(METHODS)}. Write a "
        "method of your own as package.module:NAME."
    )


def _import_method(path: str) -> Method:
    """The method at `package.module:NAME`, from the working directory too."""
    module, _, attribute = path.partition(":")
    try:
        found = import_own(module, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"method is {path!r}, but {error}. Write package.module:NAME: a module that Python can import from here, "
            "and the name of a Method in it."
        ) from error
    if not isinstance(found, Method):
        raise ValueError(
            f"method is {path!r}, which is of type {type(found).__name__}; it must be a tropd.Method "
            "(docs/add_a_method.md)."
        )
    try:
        return _complete(found)
    except ValueError as error:
        raise ValueError(f"method is {path!r}, which cannot be used: {error}") from error


def _complete(method: Method) -> Method:
    """A method of one's own, whole; see `register_method`."""
    if not isinstance(method.name, str) or not method.name.isidentifier():
        raise ValueError(f"name is {method.name!r}; use letters, digits and _, as in the names of METHODS.")
    later = None if method.second_stage is None else _with_defaults(method.second_stage)
    method = replace(_with_defaults(method), second_stage=later)
    for stage in _stages(method):
        check_parts(stage)
    check_combination(method)
    if METHODS.get(method.name, method) != method:
        raise ValueError(f"name is {method.name!r}, which another method already has. Choose another name.")
    return method


def _stages(method: Method) -> list[Method]:
    return [method] if method.second_stage is None else [method, method.second_stage]


def _stages_for(key: str, method: Method) -> list[Method]:
    """The stages that a change of `key` is for."""
    stages, which = _stages(method), BY_NAME[key].stages
    return stages if which == "both" else stages[-1:] if which == "second" else stages[:1]


def _apply(method: Method, changes: dict[str, Any]) -> Method:
    if method.second_stage is None:
        return replace(method, **changes)
    later = {key: value for key, value in changes.items() if BY_NAME[key].stages != "first"}
    if "outlier_tau" in changes and method.second_stage.advantage_floor is not None:
        later.setdefault("advantage_floor", min(changes["outlier_tau"], 0.0))
    first = {key: value for key, value in changes.items() if BY_NAME[key].stages != "second"}
    return replace(method, **first, second_stage=_with_defaults(replace(method.second_stage, **later)))


def _with_defaults(method: Method) -> Method:
    """Fill what a changed part newly needs with the published default."""
    filled: dict[str, Any] = {}
    if method.outlier_tau is None and BY_NAME["outlier_tau"].is_read(method):
        filled["outlier_tau"] = DEFAULT_OUTLIER_TAU
    if method.advantage in DEFAULT_ALPHAS and method.advantage_alpha is None:
        filled["advantage_alpha"] = DEFAULT_ALPHAS[method.advantage]
    if method.fkl_top_k is None and BY_NAME["fkl_top_k"].is_read(method):
        filled["fkl_top_k"] = 64
    if method.outlier_uses_fkl and method.fkl_truncation is None:
        filled["fkl_truncation"] = "none"
    if method.guided and method.guidance_beta is None:
        filled["guidance_beta"] = 0.001
    return replace(method, **filled)


_LATER = ("support", "advantage_scale")
"""Parts newer than some records, in which a default is left out: runs that began without the part can be resumed
(but those of `tv_opd`, which has become another method)."""


def describe(method: Method) -> dict[str, Any]:
    """The method's settings as plain data for a run directory: what is set, nested for a second stage.

    >>> {key: value for key, value in describe(METHODS["opd"]).items() if key not in ("summary", "source")}["gate"]
    'open'
    """
    plain = {
        field.name: getattr(method, field.name)
        for field in fields(method)
        if field.name not in _LATER or getattr(method, field.name) != field.default
    }
    if method.second_stage is not None:
        plain["second_stage"] = describe(method.second_stage)
    return {key: value for key, value in plain.items() if value is not None}
