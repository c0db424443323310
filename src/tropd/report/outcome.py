"""The outcome of a run: its quantities before and after, compared only where they are comparable.

The preflight and evaluations roll out without a teacher's prefix; the steps of a guided method do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Quantity:
    """A row of the summary.

    In a good run it rises (`good` is 1), falls (−1), or neither (0). `preflight` names it in the preflight's
    measurement.
    """

    metric: str
    label: str
    form: str
    good: int
    preflight: str | None = None


QUANTITIES = (
    Quantity("kl/k1", "reverse KL, K1 estimate (nats)", ".3f", -1, "k1"),
    Quantity("trust/fraction", "trust fraction, 1 − TV", ".3f", 1, "trust_fraction"),
    Quantity("log_ratio/p01", "1% quantile of r (nats)", ".2f", 1),
    Quantity("entropy/student", "student entropy (nats)", ".3f", 0, "student_entropy"),
    Quantity("entropy/teacher", "teacher entropy (nats)", ".3f", 0, "teacher_entropy"),
    Quantity("response/length", "response length (tokens)", ".1f", 0, "mean_length"),
    Quantity("response/truncated_share", "responses cut at the limit", ".1%", -1, "truncated_share"),
    Quantity("response/collapsed_share", "collapsed responses", ".1%", -1, "collapsed_share"),
    Quantity("grad_norm", "gradient norm before clipping", ".3g", 0),
    Quantity("reward", "reward", ".3f", 1),
)


class Row(NamedTuple):
    """A quantity, its values as text (empty where it was not measured), and how it moved: `↑`, `↓`, `=` or nothing.

    `well` says whether it moved as in a good run; `None` where that is neither.
    """

    label: str
    values: tuple[str, ...]
    moved: str
    well: bool | None


@dataclass(frozen=True)
class Outcome:
    """A table of quantities; `note` says what the columns are of, where they are not alike."""

    titles: tuple[str, ...]
    rows: list[Row]
    note: str


def ends(history: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float] | None:
    """Means of a metric over the first and the last tenth of its logged values.

    >>> ends([{"a": 1.0}, {"b": 0.0}, {"a": 3.0}], "a")
    (1.0, 3.0)
    """
    values = [entry[name] for entry in history if entry.get(name) is not None]  # not a number is no number
    if not values:
        return None
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def outcome(history: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> Outcome:
    """What moved, between moments that compare.

    With evaluations these are the preflight, or the first of them, and the last. Without, the preflight, or the
    first steps, and the last steps; nothing is said to have moved where a teacher's prefixes are in one of the two.
    """
    evaluations = [entry for entry in history if "eval_loss" in entry]
    steps = [entry for entry in history if "eval_loss" not in entry]
    prefix = ends(steps, "guidance/prefix_length") or (0.0, 0.0)
    first = {name: value for q in QUANTITIES if (value := ends(steps, name := q.metric)) is not None}
    starts: list[float | None] = [_before(q, before, evaluations, first) for q in QUANTITIES]
    last_steps = [first[q.metric][1] if q.metric in first else None for q in QUANTITIES]
    evaluated = [evaluations[-1].get(f"eval_{q.metric}") if evaluations else None for q in QUANTITIES]
    has_two = len(evaluations) > 1 or bool(evaluations and before)
    alike = has_two or max(prefix[1], 0.0 if before else prefix[0]) == 0
    titles = [_start_title(before, evaluations), "last steps"]
    columns = [starts, last_steps]
    if evaluations:
        titles.insert(1, f"evaluation, step {evaluations[-1].get('step', '?')}")
        columns.insert(1, evaluated)
    rows = []
    for number, quantity in enumerate(QUANTITIES):
        values = [column[number] for column in columns]
        if any(value is not None for value in values[1:]):
            rows.append(_row(quantity, values, alike))
    return Outcome(tuple(titles), rows, _note(prefix, bool(before), has_two, alike))


def _before(
    quantity: Quantity,
    before: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    first: Mapping[str, tuple[float, float]],
) -> float | None:
    if before:
        return before.get(quantity.preflight or "")
    if len(evaluations) > 1:
        return evaluations[0].get(f"eval_{quantity.metric}")
    return first[quantity.metric][0] if quantity.metric in first else None


def _start_title(before: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    if before:
        return "preflight"
    return f"evaluation, step {evaluations[0].get('step', '?')}" if len(evaluations) > 1 else "first steps"


def _note(prefix: tuple[float, float], has_before: bool, has_evaluations: bool, alike: bool) -> str:
    if not alike:
        mean = f"{prefix[1]:.1f} tokens" if has_before else f"{prefix[0]:.0f}, at the end {prefix[1]:.1f} tokens"
        return (
            f"No arrows, because the columns cannot be compared: rollouts of the steps continue teacher prefixes "
            f"({mean} on average), where the two models differ less. For a comparison set eval_data and eval_strategy; "
            "evaluations, like the preflight, use no prefixes."
        )
    if has_evaluations:
        behind = (
            f"; those of the last steps continue prefixes of {prefix[1]:.1f} tokens on average" if prefix[1] else ""
        )
        whose = "the preflight's on training prompts, the evaluation's on its own" if has_before else "on its prompts"
        return f"Arrows compare rollouts without a teacher prefix, {whose}{behind}."
    return ""


def _row(quantity: Quantity, values: Sequence[float | None], alike: bool) -> Row:
    start, end = values[0], values[1]
    moved, well = "", None
    if alike and start is not None and end is not None:
        moved, well = _moved(start, end, quantity.good)
    texts = tuple("" if value is None else f"{value:{quantity.form}}" for value in values)
    return Row(quantity.label, texts, moved, well)


def _moved(start: float, end: float, good: int) -> tuple[str, bool | None]:
    """An arrow, and whether it points as it does in a good run; neither for a tie or a neutral quantity."""
    change = end - start
    if abs(change) <= 0.01 * max(abs(start), abs(end), 1e-9):
        return "=", None
    return "↑" if change > 0 else "↓", None if good == 0 else change * good > 0
