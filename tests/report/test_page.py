"""The page: whole, self-contained, and nothing that a model wrote is part of it."""

from html.parser import HTMLParser

import pytest

from tropd.report.page import Page, Section, Table, page_html
from tropd.report.rollouts import REGIONS, Sample, regions_legend, sample_html

HOSTILE = "</span></div><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
VOID = {"meta", "img", "br", "line", "circle", "rect", "polygon", "polyline", "path"}


class Balanced(HTMLParser):
    """Notes the tags of a page and whether each one is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], set(), set()

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(html):
    page = Balanced()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def token(text, region="trust", ratio=-1.0):
    return {"text": text, "region": region, "log_ratio": ratio}


def everything_hostile():
    table = Table(HOSTILE, [HOSTILE, "b"], [[HOSTILE, "1"]], note=HOSTILE)
    samples = [Sample(HOSTILE, HOSTILE, [token(HOSTILE, region) for region in (*REGIONS, HOSTILE)])]
    section = Section(HOSTILE, note=HOSTILE, tables=[table], charts_note=HOSTILE, samples=samples)
    return Page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [section])


def test_nothing_in_the_data_becomes_part_of_the_page():
    page = parsed(page_html(everything_hostile()))
    assert not {"script", "img"} & page.seen and "onerror" not in page.attributes


@pytest.mark.parametrize("region", REGIONS)
def test_a_token_is_marked_by_its_region_and_shows_its_ratio(region):
    mark = REGIONS[region][0]
    assert f'<span class="{mark}" title="r = -3.21">7</span>' in sample_html(
        Sample("h", "p", [token("7", region, -3.21)])
    )
    assert f'class="{mark}"' in regions_legend()


def test_regions_are_told_apart_without_colour():
    from tropd.report.style import CSS

    rules = {mark: next(line for line in CSS.splitlines() if line.startswith(f".{mark} {{")) for mark in "ogx"}
    assert "font-weight: 700" in rules["o"] and "border-bottom: 3px solid" in rules["o"]
    assert "italic" in rules["g"] and "dotted" in rules["g"] and "line-through" in rules["x"]


def test_a_token_without_a_score_or_text_is_shown():
    html = sample_html(Sample("h", "p", [token("", "left out", None), token("a\nb")]))
    assert '<span class="x">∅</span>' in html and "a↵\nb" in html
    assert "nothing written" in sample_html(Sample("h", "p", []))


def test_a_page_of_nothing_is_a_page():
    assert {"html", "head", "body", "h1"} <= parsed(page_html(Page("t", "i", []))).seen
