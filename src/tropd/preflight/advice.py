"""Which method and settings follow from a measured pair that can work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..objective.method_parts import TRUST_GATES
from ..objective.methods import Method
from ..objective.schedules import guidance_fraction, prefix_length
from .measurement import Endings, PairMeasurement

LOW_TOPK_MASS = 0.95
"""The teacher's mass on its top-k below which the forward KL misses too much of it: see docs/metrics.md."""
ENOUGH_TOPK_SHARE = 0.25
"""A k that reaches 99% at this part of the configured one may be lowered: the top-k's memory shrinks fourfold."""
TRUNCATED_SHARE = 0.5
"""From this share of unfinished rollouts on, most responses are cut and endings are hardly learned."""
FULL_PREFIX_SHARE = 1 / 3
"""Share of the steps that may start from a whole teacher response: supervised fine-tuning, whatever the method."""
SCHEDULE_STEPS = 200


@dataclass
class Advice:
    """What follows, gathered piece by piece."""

    method: str
    sentences: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def add(self, sentence: str, **settings: Any) -> None:
        self.sentences.append(sentence)
        self.settings |= settings


def advise(
    m: PairMeasurement, method: Method, kind: str, max_completion_length: int, response_lengths: Sequence[int] | None
) -> Advice:
    """Method and settings for a pair of `kind` `safe`, `outliers` or `far`."""
    advice = Advice(method.name)
    _advise_endings(advice, m.endings)
    _advise_method(advice, method, kind)
    _advise_top_k(advice, m, method)
    _advise_guidance(advice, m, method, max_completion_length, response_lengths)
    _advise_budget(advice, m, max_completion_length)
    return advice


def _advise_endings(advice: Advice, endings: Endings) -> None:
    if endings.aligned:
        return
    if endings.undeclared:
        ids = sorted({*endings.known, *endings.undeclared})
        advice.add(
            f"Set ending: one_action and ending_ids: {ids}, so that all of them are one action and rollouts stop at "
            "each; then check again.",
            ending="one_action",
            ending_ids=" ".join(map(str, ids)),
        )
    else:
        advice.add("Set ending: one_action; then check again.", ending="one_action")


def has_unbounded_k1(method: Method) -> bool:
    """Does some token's policy gradient grow with −r without bound?"""
    ungated = method.gate in ("open", "student_entropy", "teacher_entropy")
    ratio = method.advantage == "log_ratio" and method.advantage_floor is None
    return (method.trust == "k1" and ungated and ratio) or (method.gate, method.outlier) == ("support", "k1")


def _advise_method(advice: Advice, method: Method, kind: str) -> None:
    if kind == "safe":
        if method.guided:
            advice.add(
                f"{method.name} is suitable; opd is simpler, and does not spend its first steps on teacher prefixes."
            )
        if method.trust not in ("gkd", "rkl_direct"):
            advice.add(
                "tropd_support, which reads the teacher's top-16, learned more than opd and tropd with the same token "
                "budget on some small pairs as close as this one, and as much on another (docs/results.md)."
            )
        return
    if has_unbounded_k1(method):
        better = {
            "outliers": "tropd_support, which is reverse KL on the teacher's top-16 and bounded elsewhere, or tropd as "
            "printed",
            "far": "tropd, which bounds its outliers, starts from teacher prefixes (`tropd generate` writes them) and "
            "moved least from the teacher's text on such a pair",
        }
        advice.add(
            f"{method.name} is a poor choice for this pair: its K1 weights every outlier by its full r. Set method: "
            f"{better[kind]}. Where the teacher runs in this process, gkd compares the whole vocabulary and ended "
            "closest in most comparisons.",
        )
        advice.method = "tropd" if kind == "far" else "tropd_support"
    elif kind == "far" and method.name == "tropd_support":
        advice.add(
            "On a pair as far as this one a run of tropd_support, one of three, ended farther from its teacher than it "
            "began, as no run of another method did (docs/results_in_detail.md). Consider gkd, if the teacher runs in "
            "this process, or tropd."
        )
    elif kind == "far" and method.gate in TRUST_GATES and method.outlier == "mask" and not method.guided:
        advice.add(
            f"{method.name} removes the signal where the student writes what the teacher would not, which is most of "
            "its text. Set method: tropd, which learns from those tokens by forward KL.",
        )
        advice.method = "tropd"


def _advise_top_k(advice: Advice, m: PairMeasurement, method: Method) -> None:
    compares = method.outlier_uses_fkl or method.trust == "jsd"  # reverse KL on a support misses nothing of the rest
    if not (compares or advice.method == "tropd") or m.teacher_topk_mass is None:
        return
    if m.teacher_topk_mass < LOW_TOPK_MASS and m.top_k < m.vocab_size:
        wider = min(4 * m.top_k, m.vocab_size)
        advice.add(
            f"The teacher's top {m.top_k} hold {m.teacher_topk_mass:.0%} of its probability on these states, so the "
            f"forward KL misses the rest. Set fkl_top_k: {wider}.",
            fkl_top_k=wider,
        )
    elif m.k_for_99 is not None and m.k_for_99 <= ENOUGH_TOPK_SHARE * m.top_k:
        advice.add(f"The teacher's top {m.k_for_99} already hold 99% of its probability; fkl_top_k could be smaller.")


def _advise_guidance(
    advice: Advice, m: PairMeasurement, method: Method, budget: int, response_lengths: Sequence[int] | None
) -> None:
    becomes_tropd = advice.method == "tropd" != method.name
    reading = "cap" if becomes_tropd else method.guidance_length
    if not (method.guided or becomes_tropd) or reading != "cap":
        return
    length = median(response_lengths) if response_lengths else m.ended_length
    # Where most rollouts are cut, the few that ended say nothing about how long responses are.
    if length is None or (not response_lengths and m.truncated_share > TRUNCATED_SHARE):
        return
    schedule = "cosine" if becomes_tropd else method.guidance_schedule
    share = full_prefix_share(schedule, round(length), budget)
    if share > FULL_PREFIX_SHARE and m.episodes is not None and not response_lengths:
        advice.add(
            f"If the teacher's episodes are like the student's, {length:.0f} tokens long, far fewer than "
            f"max_completion_length {budget}: under guidance_length cap the teacher would have all turns but the last "
            f"in {share:.0%} of the steps. Record its episodes with `tropd generate`, and set guidance_length: share."
        )
    elif share > FULL_PREFIX_SHARE:
        whose = "The given teacher responses have" if response_lengths else "If the teacher's responses are like the"
        whose += f" a median of {length:.0f} tokens" if response_lengths else f" student's, {length:.0f} tokens long"
        advice.add(
            f"{whose}, far fewer than max_completion_length {budget}: under guidance_length cap {share:.0%} of the "
            "steps would start from a whole response, which is supervised fine-tuning. Set guidance_length: share.",
            guidance_length="share",
        )


def full_prefix_share(schedule: str, response_length: int, budget: int) -> float:
    """Share of a run's steps whose prefix, under `cap`, is all of a response but the token left to the student.

    >>> full_prefix_share("cosine", 50, 100), full_prefix_share("cosine", 100, 100)
    (0.51, 0.065)
    """
    lengths = [
        prefix_length(
            "cap",
            guidance_fraction(schedule, step, SCHEDULE_STEPS),
            response_length=response_length,
            max_length=budget,
        )
        for step in range(SCHEDULE_STEPS)
    ]
    return lengths.count(max(0, response_length - 1)) / SCHEDULE_STEPS


def _advise_budget(advice: Advice, m: PairMeasurement, budget: int) -> None:
    if m.truncated_share <= TRUNCATED_SHARE:
        return
    cut = f"{m.truncated_share:.0%} of the rollouts do not end within max_completion_length {budget}"
    if m.repetitive_share > m.truncated_share / 2:
        advice.add(
            f"{cut}, and most of them only repeat themselves: a longer budget would not help. Check that the student "
            "ends a turn as its chat template does."
        )
    else:
        advice.add(
            f"{cut}: there the loss sees no ending, and a student can lose its own. If responses are meant to end, "
            f"give them more room, for example max_completion_length: {2 * budget}.",
            max_completion_length=2 * budget,
        )
