"""What `tropd.preflight.measure` makes of a probe, and verdict and report read. Nats and shares throughout.

N counts the probed student tokens that have a finite teacher score; r = log π_T(x) − log π_old(x) of such a token.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PositionBucket:
    """Tokens at response positions `start` ≤ t < `stop`: their number, trust fraction and K1."""

    start: int
    stop: int
    num_tokens: int
    trust_fraction: float
    k1: float


@dataclass(frozen=True)
class EndingUse:
    """An id that may end a response, and the probability that each model gives it by itself, on average."""

    token_id: int
    # `student` and the names of teachers (`teacher` for one without) that name it as an ending
    declared_by: tuple[str, ...]
    student_at_end: float | None  # by the student, where its responses ended
    teacher_at_end: float | None  # by the teacher, there
    student_at_teachers: float | None  # by the student, where the teacher finds an ending likeliest
    teacher_at_teachers: float | None  # by the teacher, there


@dataclass(frozen=True)
class Endings:
    """How the responses of a pair end."""

    merged: bool  # are all known endings one action?
    known: tuple[int, ...]  # E
    differ: bool  # do student and teacher declare different ones?
    uses: tuple[EndingUse, ...]  # the ids of E, and others that are used as endings
    num_ended: int  # rollouts that the student ended
    num_at_teachers: int  # places at which the teacher finds an ending likeliest
    last_outlier_share: float | None  # of the rollouts that ended, those whose last token has r < −2

    @property
    def student_id(self) -> int | None:
        """What the student ends with: the likeliest id where its responses ended."""
        return self._likeliest("student_at_end")

    @property
    def teacher_id(self) -> int | None:
        """What the teacher would end with: the likeliest id where it would, else where the student has ended."""
        by_itself = self._likeliest("teacher_at_teachers")
        return self._likeliest("teacher_at_end") if by_itself is None else by_itself

    @property
    def undeclared(self) -> tuple[int, ...]:
        """Ids outside E that a model ends with, by measurement."""
        return tuple(use.token_id for use in self.uses if use.token_id not in self.known)

    @property
    def apart(self) -> bool:
        """Do the models end differently, as declared or as measured?"""
        ends = (self.student_id, self.teacher_id)
        return self.differ or bool(self.undeclared) or (None not in ends and ends[0] != ends[1])

    @property
    def aligned(self) -> bool:
        """Is the ending the same action for both?"""
        return not self.apart or (self.merged and not self.undeclared)

    def _likeliest(self, name: str) -> int | None:
        found = [use for use in self.uses if (getattr(use, name) or 0.0) >= USED]
        return max(found, key=lambda use: getattr(use, name)).token_id if found else None


USED = 0.1
"""Mean probability from which an id is called used as an ending."""


@dataclass(frozen=True)
class Episodes:
    """Rollouts with tools."""

    mean_turns: float  # of a rollout
    cut_share: float  # of the rollouts, those that end in a call that nobody answered
    num_calls: int  # turns in which the token stands that opens a call
    # of these, in how many a call could be read; `None` where there are none, or the template shows no such token
    parsed_share: float | None
    turns: tuple[PositionBucket, ...]  # tokens, trust fraction and K1 of each turn, counted from 1


@dataclass(frozen=True)
class GradientForecast:
    """What OPD's first gradient will be made of, before any backward pass; see `measure.forecast_gradient`."""

    outlier_share: float  # share of the total squared gradient that comes from tokens with r < −2
    ratio: float  # ‖∇ of opd‖ / ‖∇ of mask_outlier‖ on the same rollouts; infinite where every token is an outlier


@dataclass(frozen=True)
class PairMeasurement:
    """A student and a teacher, as a few rollouts show them. `None`: nothing to measure it on."""

    num_prompts: int  # distinct prompts
    num_rollouts: int
    num_tokens: int  # N
    nonfinite_tokens: int  # student tokens without a finite teacher score; they are in no other number
    trust_fraction: float | None  # mean of min(ρ, 1) = 1 − TV(π_S, π_T) on the student's states
    trust_standard_error: float | None  # of it, over rollouts
    positions: tuple[PositionBucket, ...]  # the same by place in the response
    k1: float | None  # mean of −r: the K1 estimate of KL(student‖teacher)
    k1_standard_error: float | None  # of it, over rollouts
    mean_abs_gap: float | None  # mean |log π_T − log π_S| with the trainer's own log π_S: 0 for a model and itself
    student_nll: float | None  # mean −log π_old of the student's text: an estimate of its entropy
    teacher_nll: float | None  # mean −log π_T of the student's text
    student_entropy: float | None  # mean, exact per state
    teacher_entropy: float | None  # mean, exact per state
    chance_nll: float  # log V, the negative log-likelihood of guessing
    outlier_share: float | None  # share of tokens with r < −2
    deep_outlier_share: float | None  # share of tokens with r < −5
    log_ratio_median: float | None  # median of r
    log_ratio_min: float | None  # smallest r
    outlier_p50: float | None  # median of r among the outliers
    outlier_p01: float | None  # 1% quantile of r among the outliers
    gradient: GradientForecast | None  # forecast of OPD's gradient
    top_k: int  # k asked of the teacher
    teacher_topk_mass: float | None  # the teacher's mean mass on its top-k
    student_topk_mass: float | None  # the student's mean mass on it
    k_for_99: int | None  # smallest k on which the teacher's mean mass is 99%; `None` where `top_k` does not reach it
    vocab_size: int  # entries that both models have
    prompt_tokens: int  # prompt tokens that the student read (first tokens are context)
    student_prompt_nll: float | None  # per token of the prompts as the student sees them
    teacher_prompt_nll: float | None  # per token of the prompts as the teacher sees them
    mean_length: float  # tokens of a response
    max_length: int  # tokens of the longest response
    ended_length: float | None  # mean tokens of the responses that end
    truncated_share: float  # rollouts without an end-of-sequence token
    repetitive_share: float  # rollouts that end in a repeating cycle
    collapsed_share: float  # rollouts that are empty or only repeat themselves
    excluded_share: float  # rollouts that the masking switches leave out of the loss
    endings: Endings
    episodes: Episodes | None = None  # where there are tools

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite become `None`."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
