"""The page of an evaluation: scores with their intervals, and a browser of responses that needs no script."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from .page import Table
from .rendering import CSS, TEMPLATES, digest

KINDS = {
    "right": "right",
    "wrong": "wrong",
    "no_answer": "no answer",
    "undecided": "undecided",
    "cut": "cut",
    "seen": "seen in training",
}
"""What a response may be; the first four exclude each other."""


@dataclass(frozen=True)
class Answer:
    """A response with its verdict; `kinds` are keys of `KINDS`, `facts` say what was graded and why."""

    heading: str
    kinds: Sequence[str]
    facts: str
    prompt: str
    response: str


@dataclass(frozen=True)
class Browser:
    """Responses to look through, filtered by their kinds; `note` says which they are."""

    answers: Sequence[Answer]
    note: str

    @property
    def choices(self) -> list[tuple[str, str]]:
        """All, and each kind that there is."""
        return [("all", "all"), *((kind, name) for kind, name in KINDS.items() if self.count(kind))]

    def count(self, kind: str) -> int:
        return sum(kind == "all" or kind in answer.kinds for answer in self.answers)


@dataclass(frozen=True)
class BenchmarkSection:
    """One benchmark: its parts and other scores, and its responses."""

    heading: str
    tables: Sequence[Table]
    browser: Browser


@dataclass(frozen=True)
class AnswersPage:
    """A whole page: facts to judge the numbers by, the scores of all benchmarks, the HTML of their chart, and the
    benchmarks."""

    title: str
    intro: str
    facts: Sequence[tuple[str, str]]
    scores: Table
    chart: str
    sections: Sequence[BenchmarkSection] = field(default_factory=list)


def answers_html(page: AnswersPage) -> str:
    """The page as one file of HTML that needs no other."""
    css = CSS + (files(__package__) / "templates" / "answers.css").read_text(encoding="utf-8")
    return TEMPLATES.get_template("answers.html").render(page=page, kinds=KINDS, css=css, css_hash=digest(css))
