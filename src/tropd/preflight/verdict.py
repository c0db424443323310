"""What a measured pair means: which kind it is, what to expect, which method and settings follow."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..objective.methods import Method
from .advice import advise
from .ending_findings import ending_sentences
from .measurement import Endings, PairMeasurement

Kind = Literal["identical", "safe", "endings", "outliers", "far", "endings_apart", "will_not_work"]

IDENTICAL_GAP = 0.02
"""Mean |log π_T − log π_S| in nats below which two models are one: 0 for a model and itself, 0.016 for the story model
and its copy in bfloat16. Two different models this close have a TV of at most 0.01, and as little to learn."""
SAFE_TRUST = 0.85
"""Trust fraction from which plain OPD is safe. On the story model OPD ended 0.003 nats of reverse KL behind FKL Outlier
from a start at 0.89, 0.023 behind from 0.73, 0.045 from 0.58 and 0.33 from 0.26 (docs/preflight.md and
docs/results_in_detail.md); the threshold is between the first two. It is about reverse KL: on the shipped pair,
at 0.95, OPD ended level with TrOPD in graded accuracy on one domain, and 7 points behind it on three."""
FAR_TRUST = 0.5
"""Trust fraction below which the teacher refuses more than every second token. At 0.26 (story model, layers 0, 1 and 4)
OPD ended 0.38 nats behind TrOPD, with gradient norms of 3 to 14 where TrOPD's stayed below 1
(docs/results_in_detail.md)."""
MAX_NONFINITE_SHARE = 0.5
"""Tokens without a finite teacher score are left out; where they are most tokens, the teacher is broken."""
MAX_COLLAPSED_SHARE = 0.9
"""The collapse guard stops a run at this share of empty or repeating rollouts (`collapse_share`)."""
CHANCE_MARGIN = 0.95
"""A model whose negative log-likelihood is at least this part of log V reads no better than guessing. A teacher is
called broken only where it is so on the student's text *and* on the prompts: a good teacher finds a far student's text
as unlikely (0.97 log V for layers 0, 1 and 4), and models that were trained on answers alone read questions worse than
by guessing (2.2 log V for the shipped pair). Random weights lie at 1.0 on both, permuted token ids above 2.5."""
MIN_PROMPT_TOKENS = 16
"""Fewer prompt tokens than this say nothing about how a model reads prompts."""


@dataclass(frozen=True)
class Verdict:
    """What to expect of a pair."""

    # `identical`: nothing to learn by K1; `safe`: plain OPD is safe; `endings`: close but for the ending, which is one
    # action; `outliers`: outliers dominate OPD's gradient, use a trust region; `far`: workable, with a trust region and
    # guidance; `endings_apart`: the endings differ and each is scored by itself; `will_not_work`
    kind: Kind
    sentences: tuple[str, ...]  # what was seen, what follows, what to type; in reading order
    # the method that follows: the configured one unless it is a poor choice; `None` where none helps
    method: str | None
    settings: dict[str, Any]  # settings to change, by their names in the configuration

    @property
    def works(self) -> bool:
        return self.kind != "will_not_work"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    measurement: PairMeasurement,
    method: Method,
    *,
    max_completion_length: int,
    teacher_response_lengths: Sequence[int] | None = None,
    tokenizer: Any = None,
) -> Verdict:
    broken = _why_it_cannot_work(measurement, max_completion_length)
    if broken is not None:
        return Verdict("will_not_work", (broken,), None, {})
    distance = _kind(measurement)
    kind = _with_endings(distance, measurement.endings)
    endings = ending_sentences(measurement.endings, tokenizer)
    seen = [*endings, *_distance(measurement, kind), *_student_at_chance(measurement)]
    if kind == "identical":
        return Verdict(kind, tuple(seen), None, {})
    advice = advise(measurement, method, distance, max_completion_length, teacher_response_lengths)
    return Verdict(kind, (*seen, *advice.sentences), advice.method, advice.settings)


def _with_endings(kind: Kind, endings: Endings) -> Kind:
    """A pair whose endings differ is never safe as it is."""
    if kind == "identical" or not endings.apart:
        return kind
    if not endings.aligned:
        return "endings_apart"
    return "endings" if kind == "safe" else kind


def _kind(m: PairMeasurement) -> Kind:
    assert m.mean_abs_gap is not None, "there are scored tokens"
    assert m.trust_fraction is not None
    if m.mean_abs_gap < IDENTICAL_GAP:
        return "identical"
    if m.trust_fraction >= SAFE_TRUST:
        return "safe"
    return "outliers" if m.trust_fraction >= FAR_TRUST else "far"


def _why_it_cannot_work(m: PairMeasurement, budget: int) -> str | None:
    scored = m.num_tokens + m.nonfinite_tokens
    if scored == 0:
        return (
            f"All {m.num_rollouts} rollouts are excluded from the loss (mask_truncated_completions, "
            f"mask_repetitive_completions): {m.truncated_share:.0%} do not end within max_completion_length {budget}. "
            "Nothing would be learned; raise max_completion_length, or switch the masking off."
        )
    if m.nonfinite_tokens / scored > MAX_NONFINITE_SHARE:
        return (
            f"The teacher has no finite score for {m.nonfinite_tokens} of {scored} tokens, so there is nothing to "
            f"learn. Its weights or its precision are broken; try teacher_model_init_kwargs: {{dtype: float32}}."
        )
    if _at_chance(m, m.teacher_nll) and m.prompt_tokens >= MIN_PROMPT_TOKENS and _at_chance(m, m.teacher_prompt_nll):
        return (
            f"The teacher gives the student's text {m.teacher_nll:.1f} nats per token and the prompts "
            f"{m.teacher_prompt_nll:.1f}; guessing among {m.vocab_size} tokens costs {m.chance_nll:.1f}. It cannot "
            "read these ids: its weights are untrained, or its vocabulary assigns other ids to the same tokens. "
            "Compare the folders of weights and tokenizer, and choose a teacher of the student's family."
        )
    if m.collapsed_share >= MAX_COLLAPSED_SHARE:
        return (
            f"{m.collapsed_share:.0%} of the student's rollouts are empty or only repeat themselves, so the run would "
            "be stopped as collapsed (collapse_share). Look at the prompts and their chat template, sample at "
            "temperature 1, or fine-tune the student on some of the teacher's responses first."
        )
    return None


def _distance(m: PairMeasurement, kind: Kind) -> list[str]:
    """How far apart, and what the outliers among the tokens will do."""
    if kind == "identical":
        return [
            f"Student and teacher are the same model up to rounding: their log-probabilities differ by "
            f"{m.mean_abs_gap:.4f} nats on average. No method based on K1 can learn anything. Did you give the same "
            "folder twice? (With teacher_prompt or a different template for the teacher they would differ.)"
        ]
    assert m.trust_fraction is not None
    assert m.outlier_share is not None
    error = f" ± {100 * m.trust_standard_error:.0f}" if m.trust_standard_error is not None else ""
    words = {
        "safe": "They are close: plain OPD is safe here. A trust region affects few tokens, but may still end ahead.",
        "endings": "They end a response with different ids, which are scored as one action. Otherwise they are close.",
        "endings_apart": "They end a response with different ids, and each is scored separately: the teacher finds "
        "the student's ending nearly impossible, so the student forgets how to stop, or learns an ending at which its "
        "rollouts do not stop.",
        "outliers": "They disagree often enough for outliers to drive plain OPD: use a method that bounds them.",
        "far": "They are far apart: the teacher rejects more than half of the tokens. It can work with a method that "
        "bounds outliers. Teacher prefixes show states that the student does not reach by itself. If the student "
        "writes no sentences yet, fine-tune it on the teacher's responses first: trained on its own, it can come "
        "closer by writing emptier text, such as line breaks (docs/results_in_detail.md).",
    }
    said = [
        f"The teacher accepts {100 * m.trust_fraction:.0f}{error}% of what the student writes (1 − TV). {words[kind]}"
    ]
    if m.gradient is not None and m.outlier_share > 0:
        said.append(
            f"{m.outlier_share:.1%} of the tokens have r < −2 and carry {m.gradient.outlier_share:.0%} of OPD's "
            f"squared gradient by the forecast: its norm will be at least about {m.gradient.ratio:.1f} times "
            "that of mask_outlier."
        )
    if m.endings.last_outlier_share:
        said.append(f"Of the responses that end, {m.endings.last_outlier_share:.0%} have such a token as their ending.")
    if kind in ("outliers", "far") and len(m.positions) > 1:
        first, last = m.positions[0], m.positions[-1]
        if first.trust_fraction - last.trust_fraction > 0.1:
            said.append(
                f"Trust falls along the response, from {first.trust_fraction:.0%} in its first {first.stop} tokens to "
                f"{last.trust_fraction:.0%} from token {last.start} on: errors accumulate, and the student learns less "
                "from long rollouts."
            )
    return said


def _student_at_chance(m: PairMeasurement) -> list[str]:
    if not _at_chance(m, m.student_nll):
        return []
    return [
        f"The student itself is at chance: its own text costs {m.student_nll:.1f} nats per token, and guessing "
        f"{m.chance_nll:.1f}. An untrained model learns little from its own states; fine-tune it on the "
        "teacher's responses first."
    ]


def _at_chance(m: PairMeasurement, nll: float | None) -> bool:
    return nll is not None and nll >= CHANCE_MARGIN * m.chance_nll
