"""What runs learned from, and on which tokens student and teacher disagree, from logs of cells. No torch here."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from ...atomic_files import read_jsonl
from ...report.run_folder import rollout_files
from ..layout import Layout
from .logged_series import stretches_of
from .tables import NOTHING, Table

THIRDS = ("first", "middle", "last")
TOKENS_NAMED = 6
Cells = Mapping[str, Sequence[Mapping[str, Any]]]


def phase_table(cells: Cells) -> Table:
    """For each method and third of its steps the means of what it learned from; nothing of runs without a course."""
    head = ["method", "third of the steps", "student tokens per rollout", "prefix tokens per rollout", "outliers (%)"]
    head += ["loss: trusted", "loss: outliers", "loss: prefix", "gradient norm"]
    rows = []
    for label, mine in cells.items():
        runs = [steps for cell in mine if len(steps := stretches_of(cell.get("course"))) >= len(THIRDS)]
        for number, third in enumerate(THIRDS if runs else ()):
            steps = [step for run in runs for step in run[number * len(run) // 3 : (number + 1) * len(run) // 3]]
            rows.append([label, third, *_phase(steps)])
    return head, rows


def _phase(steps: Sequence[Mapping[str, float]]) -> list[str]:
    trusted, outliers = (sum(step.get(f"regions/num_{name}", 0.0) for step in steps) for name in ("trust", "outlier"))
    share = NOTHING if not trusted + outliers else f"{100 * outliers / (trusted + outliers):.1f}"
    lengths = [_mean(steps, name, 1) for name in ("response/length", "guidance/prefix_length")]
    losses = [_mean(steps, f"loss/{region}", 4) for region in ("trust", "outlier", "guidance")]
    return [*lengths, share, *losses, _mean(steps, "grad_norm", 2)]


def _mean(steps: Sequence[Mapping[str, float]], name: str, digits: int) -> str:
    logged = [step[name] for step in steps if name in step]
    return f"{fmean(logged):.{digits}f}" if logged else NOTHING


class Doubt(NamedTuple):
    """A token that the student wrote: where in its response, in [0, 1), and the chance that the gate rejects it."""

    text: str
    place: float
    rejected: float


def doubt_table(cells: Cells, layout: Layout, reference: str) -> Table:
    """Which tokens, and which thirds of a response, student and teacher disagree on, at the start and after training.

    A token counts with 1 − min(π_T/π_S, 1), the chance that the Bernoulli gate rejects it, so that methods with another
    gate or none are read alike.
    """
    head = ["method", "tokens read", *(f"{third} third of a response (%)" for third in THIRDS), "mostly"]
    rows = [_doubt_row(f"before training ({reference})", _doubts(cells.get(reference, ()), layout, last=False))]
    rows += [_doubt_row(label, _doubts(mine, layout, last=True)) for label, mine in cells.items()]
    return head, [row for row in rows if row is not None]


def _doubts(cells: Sequence[Mapping[str, Any]], layout: Layout, *, last: bool) -> list[Doubt]:
    logs = [rollout_files(layout.cell(cell["name"])) for cell in cells]
    files = [log[-1 if last else 0] for log in logs if log]
    return [doubt for file in files for record in read_jsonl(file) for doubt in _of_rollout(record["tokens"])]


def _of_rollout(tokens: Sequence[Mapping[str, Any]]) -> Iterable[Doubt]:
    written = [token for token in tokens if token["region"] in ("trust", "outlier")]
    for number, token in enumerate(written):
        yield Doubt(token["text"], number / len(written), -math.expm1(min(token["log_ratio"], 0.0)))


def _doubt_row(name: str, doubts: Sequence[Doubt]) -> list[str] | None:
    if not doubts:
        return None
    by_third = [[d.rejected for d in doubts if int(3 * d.place) == number] for number in range(3)]
    shares = [f"{100 * fmean(third):.1f}" if third else NOTHING for third in by_third]
    return [name, f"{len(doubts):,}", *shares, _mostly(doubts)]


def _mostly(doubts: Sequence[Doubt]) -> str:
    """The tokens with most of it, each with its part of the whole."""
    by_text: dict[str, float] = defaultdict(float)
    for doubt in doubts:
        by_text[doubt.text] += doubt.rejected
    whole = sum(by_text.values())
    if not whole:
        return "nowhere"
    most = sorted(by_text, key=lambda text: (-by_text[text], text))[:TOKENS_NAMED]
    return ", ".join(f"{text!r} {100 * by_text[text] / whole:.0f}%" for text in most if by_text[text])
