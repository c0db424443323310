"""The page: what was compared, and for each setting its tables, charts and rollouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .rendering import CSS, SCRIPT, TEMPLATES, digest

if TYPE_CHECKING:
    from .inspector import Inspector


class Region(NamedTuple):
    """A region: its class on the page, its name, and how it is distinguished without colour."""

    mark: str
    name: str
    look: str


REGIONS = {
    "trust": Region("t", "trusted", "plain"),
    "outlier": Region("o", "outlier", "bold, underlined"),
    "guidance": Region("g", "teacher prefix", "italic, dotted underline"),
    "left out": Region("x", "left out", "struck through"),
}


@dataclass(frozen=True)
class Sample:
    """A rollout to show: its prompt, and `text`, `region` and `log_ratio` of each response token."""

    heading: str
    prompt: str
    tokens: Sequence[Mapping[str, Any]]

    @property
    def counts(self) -> str:
        """How many tokens each region has."""
        counts = {region.name: sum(token["region"] == key for token in self.tokens) for key, region in REGIONS.items()}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing written"


@dataclass(frozen=True)
class Table:
    """A table of text, with a sentence under it; with `words` its cells are sentences rather than numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: note, tables with their figures, and charts (HTML) with their legend, rollouts."""

    heading: str
    note: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[str] = ()
    legend: str = ""
    charts: Sequence[str] = ()
    charts_title: str = "Over the runs"
    charts_note: str = ""
    samples: Sequence[Sample] = ()

    @property
    def opened(self) -> Sample | None:
        """The rollout with the most regions, which is shown unfolded."""
        return max(self.samples, key=lambda sample: len({token["region"] for token in sample.tokens}), default=None)


@dataclass(frozen=True)
class Page:
    """A whole report.

    `facts` are what a reader needs to judge the numbers. With `follow` the page asks for itself again after so many
    seconds.
    """

    title: str
    intro: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=list)
    inspector: "Inspector | None" = None
    follow: int | None = None


def page_html(page: Page) -> str:
    """The page as one file of HTML that needs no other."""
    hashes = {"css_hash": digest(CSS), "script_hash": digest(SCRIPT)}
    return TEMPLATES.get_template("page.html").render(page=page, regions=REGIONS, css=CSS, script=SCRIPT, **hashes)
