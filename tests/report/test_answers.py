"""The page of an evaluation: whole, self-contained, and nothing that a model wrote is part of it."""

import base64
import hashlib
import re
from importlib.resources import files

from report.test_page import HOSTILE, parsed
from tropd.report.answers import KINDS, Answer, AnswersPage, BenchmarkSection, Browser, answers_html
from tropd.report.charts import interval_chart
from tropd.report.page import Table
from tropd.report.rendering import CSS


def page(text, kinds=(["right"], ["wrong", "cut"], ["no_answer", "seen"])):
    answers = [Answer(text, each, text, text, text) for each in kinds]
    table = Table(text, [text, "b"], [[text, "1"]])
    chart = interval_chart(text, [(text, 0, 10.0, 5.0, 20.0)])
    section = BenchmarkSection(text, [table], Browser(answers, text))
    return AnswersPage(text, text, [(text, text)], table, chart, [section, section])


def test_nothing_that_a_model_wrote_is_obeyed():
    found = parsed(answers_html(page(HOSTILE)))
    assert not {"script", "img"} & found.seen
    assert not {"onerror", "onclick", "style", "src"} & found.attributes


def test_the_policy_allows_the_style_of_the_page_and_nothing_else():
    html = answers_html(page("x"))
    (css,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert css == CSS + (files("tropd.report") / "templates/answers.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in html.replace("&#39;", "'")
    assert "http:" not in html and "https:" not in html


def test_a_filter_is_there_for_each_kind_of_response_and_hides_the_others():
    html = answers_html(page("x"))
    shown = re.findall(r'class="only-(\w+)"', html)
    assert shown == ["all", "right", "wrong", "no_answer", "cut", "seen"] * 2
    rules = (files("tropd.report") / "templates/answers.css").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f".only-{kind}:checked ~ .answers > :not(.{kind})" in rules
    names = re.findall(r'name="(b\d)"', html)
    assert names == ["b0"] * 6 + ["b1"] * 6, "each benchmark has its own filter"


def test_counts_are_of_the_kinds():
    browser = page("x").sections[0].browser
    assert {kind: browser.count(kind) for kind, _ in browser.choices} == {
        "all": 3, "right": 1, "wrong": 1, "no_answer": 1, "cut": 1, "seen": 1,
    }  # fmt: skip
