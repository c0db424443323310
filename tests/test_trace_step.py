"""How far one reads to follow a step: the numbers of docs/architecture.md may fall and not grow."""

import re
from pathlib import Path

from tools.trace_step import Route, trace_step

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


def test_switches_and_returns_are_counted_as_they_are_defined():
    route = Route([("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"), ("c", "5"), ("b", "6")])
    assert route.counts() == {"files": 3, "functions": 6, "switches": 4, "returns": 2}


def test_a_step_enters_no_more_than_the_page_says():
    (said,) = re.findall(r"^\| `tropd` \| (\d+) \| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    counts = trace_step("tropd", teachers=1).counts()
    assert counts["files"] <= int(said[0]) and counts["functions"] <= int(said[1])
