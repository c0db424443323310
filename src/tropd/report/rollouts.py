"""Rollouts with their tokens marked by region: by colour, and by underline and type, so that colour is never alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

REGIONS = {
    "trust": ("t", "trusted"),
    "outlier": ("o", "outlier"),
    "guidance": ("g", "teacher prefix"),
    "left out": ("x", "left out"),
}
"""Region → its class on the page, and its name there."""

MARKED = {"t": "plain", "o": "bold, underlined", "g": "italic, dotted underline", "x": "struck through"}
LINE_BREAK = "↵"


@dataclass(frozen=True)
class Sample:
    """A rollout to show.

    Attributes:
        heading: whose it is, such as `tropd, seed 1, step 40`.
        prompt: as text.
        tokens: `text`, `region` and `log_ratio` of each response token.
    """

    heading: str
    prompt: str
    tokens: Sequence[Mapping[str, Any]]


def sample_html(sample: Sample, *, opened: bool = False) -> str:
    """A rollout that unfolds."""
    counts = [
        f"{number} {name}"
        for region, (_, name) in REGIONS.items()
        if (number := sum(token["region"] == region for token in sample.tokens))
    ]
    return (
        f"<details{' open' if opened else ''}><summary>{escape(sample.heading)} "
        f"<small>{escape(', '.join(counts) or 'nothing written')}</small></summary>"
        f'<div class="rollout"><span class="prompt">{escape(sample.prompt)}</span>'
        f"{''.join(_token(token) for token in sample.tokens)}</div></details>"
    )


def regions_legend() -> str:
    """What the marks mean."""
    items = [f'<li><span class="{mark}">{name}</span> {MARKED[mark]}</li>' for mark, name in REGIONS.values()]
    return f'<ul class="regions">{"".join(items)}</ul>'


def _token(token: Mapping[str, Any]) -> str:
    """A token; what it says is the model's, and nothing in it may become part of the page."""
    mark = REGIONS.get(str(token["region"]), REGIONS["left out"])[0]
    ratio = token.get("log_ratio")
    title = "" if ratio is None else f' title="r = {float(ratio):+.2f}"'
    text = escape(str(token["text"])).replace("\n", f"{LINE_BREAK}\n") or "∅"
    return f'<span class="{mark}"{title}>{text}</span>'
