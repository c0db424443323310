"""Findings, measurement and verdict for a person, in at most 80 columns and legible without colour, or as plain data.

Everything is a `rich.text.Text`: colours are spans and never markup, so text of models and data is only text; control
characters in it were escaped when it was quoted. `str(text)` is the plain text.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from .ending_findings import ending_lines
from .findings import Finding, Level
from .measurement import PairMeasurement, PositionBucket
from .verdict import Kind, Verdict

WIDTH = 80
BAR = 24
TURNS_SHOWN = 10
STYLES: dict[Level, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "refusal": "bold red"}
HEADLINES: dict[Kind, tuple[str, str]] = {
    "identical": ("identical: nothing to learn", "yellow"),
    "safe": ("close: plain OPD is safe", "green"),
    "endings": ("close, with the ending as one action", "green"),
    "outliers": ("outliers: use a trust region", "yellow"),
    "far": ("far apart: use a trust region and teacher prefixes", "yellow"),
    "endings_apart": ("the endings differ: responses would run on", "bold yellow"),
    "will_not_work": ("this pair will not work", "bold red"),
}
"""Each with its style."""


def render_findings(findings: Sequence[Finding]) -> Text:
    """One paragraph for each finding: its level, its subject, its sentence."""
    text = Text()
    for finding in findings:
        text.append(f"{finding.level:<8}", STYLES[finding.level]).append(f" {finding.subject}\n", "bold")
        text.append(_wrapped(finding.sentence, indent=9) + "\n")
    return _ended(text)


def render_measurement(m: PairMeasurement, tokenizer: Any = None) -> Text:
    """The numbers, how responses end, and trust by place in the response; `tokenizer` names the endings."""
    text = Text()
    text.append(f"{m.num_rollouts} rollouts of {m.num_prompts} prompts, {m.num_tokens} tokens scored\n", "bold")
    for name, value in _lines(m):
        text.append(f"  {name:<34}{value}\n")
    for line in ending_lines(m.endings, tokenizer):
        text.append(line + "\n")
    if m.positions:
        text.append("  trust by place in the response\n")
        for bucket in m.positions:
            text.append(_bucket_line(bucket, f"{bucket.start}–{bucket.stop - 1}"))
    if m.episodes is not None:
        text.append("  trust by turn\n")
        for bucket in m.episodes.turns[:TURNS_SHOWN]:
            text.append(_bucket_line(bucket, f"turn {bucket.start}"))
    return _ended(text)


def render_verdict(verdict: Verdict) -> Text:
    """The kind, what to expect, and what to type."""
    headline, style = HEADLINES[verdict.kind]
    text = Text("verdict  ", "bold").append(headline + "\n", style)
    for sentence in verdict.sentences:
        text.append(_wrapped(sentence, indent=2) + "\n")
    if verdict.method is not None:
        typed = {"method": verdict.method, **verdict.settings}
        text.append("  try: ").append(" ".join(f"--{k} {v}" for k, v in typed.items()) + "\n", "bold")
    return _ended(text)


def as_dict(
    findings: Sequence[Finding], measurement: PairMeasurement | None = None, verdict: Verdict | None = None
) -> dict[str, Any]:
    """Everything as plain data for JSON; `None` where a stage did not run."""
    return {
        "findings": [vars(finding) for finding in findings],
        "measurement": None if measurement is None else measurement.as_dict(),
        "verdict": None if verdict is None else verdict.as_dict(),
    }


def _lines(m: PairMeasurement) -> list[tuple[str, str]]:
    ends = (m.truncated_share, m.repetitive_share, m.collapsed_share)
    rows = [
        ("trust fraction (1 − TV)", _with_error(m.trust_fraction, m.trust_standard_error, "{:.3f}")),
        ("reverse KL, K1 (nats per token)", _with_error(m.k1, m.k1_standard_error, "{:.3f}")),
        ("outliers, r < −2", _share(m.outlier_share) + f"   r < −5  {_share(m.deep_outlier_share)}"),
        ("ended with r < −2", f"{_share(m.endings.last_outlier_share)} of {m.endings.num_ended} responses that end"),
        ("depth of outliers (nats)", f"median {_nats(m.outlier_p50)}   p01 {_nats(m.outlier_p01)}"),
        ("lowest r (nats)", _nats(m.log_ratio_min)),
        ("NLL of the student's text", f"student {_nats(m.student_nll)}   teacher {_nats(m.teacher_nll)}"),
        ("NLL of the prompts", f"student {_nats(m.student_prompt_nll)}   teacher {_nats(m.teacher_prompt_nll)}"),
        ("NLL of guessing (log V)", _nats(m.chance_nll)),
        ("entropy", f"student {_nats(m.student_entropy)}   teacher {_nats(m.teacher_entropy)}"),
        (
            f"mass on the teacher's top {m.top_k}",
            f"student {_share(m.student_topk_mass)}   teacher {_share(m.teacher_topk_mass)}",
        ),
        ("response length (tokens)", f"mean {m.mean_length:.0f}   longest {m.max_length}"),
        ("unfinished, repeating, empty", " ".join(map(_share, ends))),
    ]
    if m.k_for_99 is not None:
        rows.insert(11, ("k with 99% of the teacher's mass", str(m.k_for_99)))
    if m.gradient is not None:
        forecast = f"{m.gradient.outlier_share:.0%} from outliers, {m.gradient.ratio:.1f} × mask_outlier's"
        rows.insert(6, ("forecast of OPD's gradient", forecast))
    if m.episodes is not None:
        e = m.episodes
        rows.append(("turns of a rollout, and cut ones", f"{e.mean_turns:.1f}   {_share(e.cut_share)}"))
        rows.append(("calls that can be read", f"{_share(e.parsed_share)} of {e.num_calls} turns that open one"))
    if m.nonfinite_tokens:
        rows.append(("tokens without a teacher score", str(m.nonfinite_tokens)))
    return rows


def _bucket_line(bucket: PositionBucket, place: str) -> str:
    blocks = round(BAR * bucket.trust_fraction)
    return (
        f"    {place:>11}  {'█' * blocks}{'·' * (BAR - blocks)}  {bucket.trust_fraction:.2f}"
        f"  K1 {bucket.k1:6.2f}  {bucket.num_tokens:>8} tokens\n"
    )


def _with_error(value: float | None, error: float | None, form: str) -> str:
    if value is None:
        return "–"
    return form.format(value) + ("" if error is None else " ± " + form.format(error))


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _wrapped(sentence: str, indent: int) -> str:
    margin = " " * indent
    return textwrap.fill(sentence, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)


def _ended(text: Text) -> Text:
    text.rstrip()
    return text
