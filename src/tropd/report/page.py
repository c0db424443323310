"""The page: what was compared, and for each setting its tables, charts and rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from .rollouts import Sample, regions_legend, sample_html
from .style import CSS


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: what it shows.
        head: titles of the columns.
        rows: cells, as many as titles.
        note: a sentence under it.
        words: are its cells sentences rather than numbers?
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        heading: its title.
        note: a sentence at its start.
        tables: shown first.
        figures: HTML of the charts that belong to the tables.
        legend: HTML, what the lines of the charts look like.
        charts: HTML of each.
        charts_note: how to read the charts.
        samples: rollouts.
    """

    heading: str
    note: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[str] = ()
    legend: str = ""
    charts: Sequence[str] = ()
    charts_note: str = ""
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: its heading.
        intro: a sentence or two.
        facts: name and value of what a reader needs to judge the numbers.
        sections: the parts.
    """

    title: str
    intro: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=list)


def page_html(page: Page) -> str:
    """The page as one file of HTML that needs no other."""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.facts)
    links = "".join(f'<a href="#s{n}">{escape(section.heading)}</a>' for n, section in enumerate(page.sections))
    sections = "".join(_section(n, section) for n, section in enumerate(page.sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{CSS}</style></head>\n"
        f"<body><h1>{escape(page.title)}</h1><p>{escape(page.intro)}</p><dl>{facts}</dl><nav>{links}</nav>\n"
        f"{sections}</body></html>\n"
    )


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="s{number}"><h2>{escape(section.heading)}</h2>']
    parts += [f"<p>{escape(section.note)}</p>"] if section.note else []
    parts += [table_html(table) for table in section.tables]
    parts += [f'<div class="charts">{"".join(section.figures)}</div>'] if section.figures else []
    if section.charts:
        note = f'<p class="note">{escape(section.charts_note)}</p>' if section.charts_note else ""
        parts.append(f'<h3>Over the runs</h3>{note}{section.legend}<div class="charts">{"".join(section.charts)}</div>')
    if section.samples:
        most = max(section.samples, key=lambda sample: len({token["region"] for token in sample.tokens}))
        shown = "".join(sample_html(sample, opened=sample is most) for sample in section.samples)
        note = "r = log π_T − log π_S of a token is shown where a pointer rests on it. The prompt is grey."
        parts.append(f'<h3>Sample rollouts</h3>{regions_legend()}<p class="note">{note}</p>{shown}')
    return "".join(parts) + "</section>\n"


def table_html(table: Table) -> str:
    """A table that scrolls sideways on its own where the screen is narrow."""
    head = "".join(f"<th>{escape(title)}</th>" for title in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    words = ' class="words"' if table.words else ""
    return (
        f'<h3>{escape(table.caption)}</h3><div class="wide"><table{words}><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )
