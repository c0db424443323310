"""The course of a run: what it logged, as the means of a few stretches of its steps. No torch here.

So few numbers that results.json carries them, and another comparison shows them beside its own runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from ...atomic_files import read_jsonl

STRETCHES = 30
"""A multiple of three, so that thirds of the stretches are thirds of the steps."""
DIGITS = 4
COUNTS = ("regions/num_trust", "regions/num_outlier", "regions/num_guidance")
LOGGED = (
    *COUNTS, "trust/fraction", "grad_norm", "entropy/student", "kl/k1", "response/length", "guidance/prefix_length",
    "loss/trust", "loss/outlier", "loss/guidance",
)  # fmt: skip

WHERE_LOGGED = (
    "response/eos_share", "response/other_ending_share", "response/unheeded_ending_share",
    "log_ratio/ending_outlier_share", "reward", "agent/turns", "agent/cut_share", "agent/trust_first_turn",
    "agent/trust_last_turn", "guidance/turns", "guidance/stale_share",
)  # fmt: skip
"""Of these, what a run has logged."""

Course = Mapping[str, Sequence[float | None]]
Step = Mapping[str, float]


def course_of(folder: Path) -> dict[str, list[float | None]] | None:
    """For each logged name, and for `step`, the mean of every stretch of the steps in a run's folder.

    A stretch in which a name was never logged has `None`. A run of fewer steps than stretches has each step as one.
    `None` where the folder holds no metrics.
    """
    file = folder / "metrics.jsonl"
    steps = [line for line in read_jsonl(file) if "response/length" in line] if file.is_file() else []
    if not steps:
        return None
    many = min(STRETCHES, len(steps))
    stretches = [steps[n * len(steps) // many : (n + 1) * len(steps) // many] for n in range(many)]
    found = {name: [_mean(stretch, name) for stretch in stretches] for name in ("step", *LOGGED, *WHERE_LOGGED)}
    return {
        name: values for name, values in found.items() if name not in WHERE_LOGGED or any(v is not None for v in values)
    }


def stretches_of(course: Course | None) -> list[dict[str, float]]:
    """A course as one set of metrics for each stretch, with what was logged in it; none where there is no course."""
    if course is None:
        return []
    rows = [dict(zip(course, values, strict=True)) for values in zip(*course.values(), strict=True)]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _mean(steps: Sequence[Step], name: str) -> float | None:
    logged = [step[name] for step in steps if step.get(name) is not None]
    return float(f"{fmean(logged):.{DIGITS}g}") if logged else None
