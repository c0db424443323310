"""The page: whole, self-contained, and nothing that a model wrote is part of it."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from tropd.report.charts import Line, interval_chart, legend, line_chart
from tropd.report.page import REGIONS, Page, Sample, Section, Table, page_html
from tropd.report.rendering import CSS

HOSTILE = "</span></div><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
VOID = {"meta", "img", "input", "br", "line", "circle", "rect", "polygon", "polyline", "path"}


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

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID
        self.handle_starttag(tag, attributes)

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


def everything(text):
    table = Table(text, [text, "b"], [[text, "1"]], note=text)
    samples = [Sample(text, text, [token(text, region) for region in (*REGIONS, text)])]
    charts = [line_chart(text, [Line(text, 0, [1], [1.0], [1.0], [1.0])], x_label=text), line_chart(text, [])]
    figures = [interval_chart(text, [(text, 0, 1.0, 0.5, 1.5)])]
    looks = legend([(text, 0)])
    section = Section(
        text, text, [table], figures=figures, legend=looks, charts=charts, charts_note=text, samples=samples
    )
    return Page(text, text, [(text, text)], [section])


def test_nothing_in_the_data_becomes_part_of_the_page():
    page = parsed(page_html(everything(HOSTILE)))
    assert not {"script", "img"} & page.seen and "onerror" not in page.attributes


def test_what_would_turn_the_line_or_cannot_be_seen_is_spelled_out():
    page = page_html(everything("a\u202eb\x1b[2Jc\x00\ud83d"))
    assert "a\\u202eb\\x1b[2Jc\\x00\\ud83d" in page and page.encode("utf-8")
    assert not {"\u202e", "\x1b", "\x00"} & set(page)


def test_the_page_may_load_run_and_send_nothing_and_has_one_style():
    page = page_html(everything("x"))
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not {"style", "onload", "onclick"} & parsed(page).attributes, "the policy would refuse it"


def sample_html(*tokens):
    page = page_html(Page("t", "i", [], [Section("s", samples=[Sample("h", "p", tokens)])]))
    return page[page.index("<details") : page.index("</details>")]


@pytest.mark.parametrize("region", REGIONS)
def test_a_token_is_marked_by_its_region_and_shows_its_ratio(region):
    mark = REGIONS[region].mark
    assert f'<span class="{mark}" title="r = -3.21">7</span>' in sample_html(token("7", region, -3.21))
    assert f'<li><span class="{mark}">{REGIONS[region].name}</span> ' in page_html(everything("x"))


def test_regions_are_told_apart_without_colour():
    rules = {mark: next(line for line in CSS.splitlines() if line.startswith(f".{mark} {{")) for mark in "ogx"}
    assert "font-weight: 700" in rules["o"] and "border-bottom: 3px solid" in rules["o"]
    assert "italic" in rules["g"] and "dotted" in rules["g"] and "line-through" in rules["x"]


def test_a_token_without_a_score_or_text_is_shown():
    html = sample_html(token("", "left out", None), token("a\nb"))
    assert '<span class="x">∅</span>' in html and "a↵\nb" in html
    assert "nothing written" in sample_html()


def test_a_page_of_nothing_is_a_page():
    assert {"html", "head", "body", "h1"} <= parsed(page_html(Page("t", "i", []))).seen
