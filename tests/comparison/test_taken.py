"""Runs of a published results.json in a comparison of one's own. The workers train nothing."""

import json

import pytest

from tropd.comparison.imported_runs import take_over
from tropd.comparison.layout import RESULT, Layout
from tropd.comparison.plan_file import read_plan
from tropd.comparison.report.results import collect
from tropd.comparison.run import record_plan, report_only


@pytest.fixture
def published(finished, tmp_path):
    """A results.json on its own, as somebody downloads it; with changes."""

    def write(name="theirs.json", change=lambda results: None):
        results = json.loads((finished.root / "results.json").read_text())
        results["hardware"] = "their <machine>"
        change(results)
        (tmp_path / name).write_text(json.dumps(results))
        return tmp_path / name

    return write


@pytest.fixture
def grown(plan_data):
    """The published plan and a method more."""
    return plan_data | {"learning_rates": [1.0e-3, 3.0e-3], "methods": {**plan_data["methods"], "fkl": None}}


def take(file, data, layout):
    plan = read_plan(data)
    record_plan(plan, layout, None)
    return take_over(file, plan, layout)


@pytest.fixture
def empty(tmp_path):
    """The folder that `compared` works in, with nothing in it."""
    layout = Layout(tmp_path / "out")
    layout.root.mkdir()
    return layout


def test_only_what_is_not_taken_over_is_run_and_the_table_is_of_both(published, finished, grown, compared, empty):
    assert take(published(), grown, empty) == 8
    layout = compared(grown)
    results = collect(layout)
    ours = {name for name, cell in results["cells"].items() if "taken_from" not in cell}
    assert len(results["cells"]) == 12 and {results["cells"][name]["label"] for name in ours} == {"fkl"}
    assert not list(layout.cell("one--opd--report-lr0.001-seed1").glob("metrics*")), "it was not run here"
    theirs = collect(finished)["settings"]["one"]["methods"]
    mine = results["settings"]["one"]["methods"]
    assert mine["opd"] == theirs["opd"] and mine["tropd"] == theirs["tropd"], "numbers do not change on the way"
    assert mine["fkl"]["differences"]["accuracy"]["n"] == 2, "paired with runs that were taken over"


def test_it_is_said_whose_runs_they_are(published, grown, compared, empty):
    take(published(), grown, empty)
    layout = compared(grown)
    words = "8 of 12 from theirs.json (their <machine>)"
    assert words in (layout.root / "tables.md").read_text()
    page = (layout.root / "report.html").read_text()
    assert "8 of 12 from theirs.json (their &lt;machine&gt;)" in page
    assert "fkl, seed 1, step" in page and "opd, seed 1, step" not in page, "rollouts are of what ran here"


def test_curves_come_along_where_they_were_published(published, finished, grown, compared, empty):
    seed = "one--opd--report-lr0.001-seed2"
    take(published(change=lambda results: results["cells"][seed].pop("course")), grown, empty)
    layout = compared(grown)
    courses = {name: cell.get("course") for name, cell in collect(layout)["cells"].items()}
    assert courses.pop(seed) is None
    theirs = collect(finished)["cells"]
    assert all(courses[name] == theirs[name]["course"] for name in theirs.keys() & courses.keys() if "report" in name)
    page = (layout.root / "report.html").read_text()
    assert "Some runs have no logged series: opd (1 of 2)." in page
    assert "nothing was logged" not in page and "What the runs trained on, and when" in page


def test_the_source_stays_known_when_the_results_are_published_again(published, grown, compared, empty, tmp_path):
    take(published(), grown, empty)
    again = compared(grown).root / "results.json"
    layout = Layout(tmp_path / "third")
    layout.root.mkdir()
    assert take(again, grown, layout) == 12
    sources = {cell["label"]: cell["taken_from"]["file"] for cell in layout.results().values()}
    assert sources == {"opd": "theirs.json", "tropd": "theirs.json", "fkl": "results.json"}


def test_cells_that_are_there_stay_and_those_that_failed_are_run(published, plan_data, compared):
    layout = compared(plan_data, only=["opd"])  # one rate: no grid

    def fail(results):
        results["cells"]["one--tropd--report-lr0.001-seed2"] |= {"error": "it fell over", "scores": None}

    before = {file: file.stat().st_mtime_ns for file in layout.root.glob(f"cells/*/{RESULT}")}
    assert take(published(change=fail), plan_data, layout) == 1
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert set(layout.results()) - {file.parent.name for file in before} == {"one--tropd--report-lr0.001-seed1"}


def test_a_cell_that_is_not_what_its_name_says_is_left(published, plan_data, empty):
    """Its name becomes a folder, and the file may be anybody's."""

    def tamper(results):
        for name, cell in list(results["cells"].items()):
            results["cells"] = {f"../../{name}": cell, f"{name}-too": cell}

    assert take(published(change=tamper), plan_data, empty) == 0
    assert not list(empty.root.parent.glob("one--*")) and not empty.results()


def test_models_may_lie_elsewhere(published, grown, empty):
    """Where they are says nothing; what they score before training does."""

    def move(results):
        results["plan"]["settings"]["one"]["teacher"] = "/elsewhere/teacher"

    assert take(published(change=move), grown, empty) == 8


def test_seeds_rates_and_methods_that_the_plan_does_not_ask_for_are_left(published, plan_data, empty):
    asked = plan_data | {"seeds": [2], "methods": {"opd": None}}
    assert take(published(), asked, empty) == 1 and list(empty.results()) == ["one--opd--report-lr0.001-seed2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan.update(max_length=32), r"a different plan: max_length \(32, now 16\)\. Make"),
        (
            lambda plan: plan["methods"].update(tropd={"guidance_beta": 0.5}),
            r"methods\.tropd\.guidance_beta \(0\.5, now 0\.01\)",
        ),
        (
            lambda plan: plan["settings"]["one"].update(domains=["code"]),
            r"settings\.one\.domains \(\[\"code\"\], now \[\"mathematics\"\]\)",
        ),
    ],
)
def test_runs_of_another_plan_are_refused(published, grown, empty, change, words):
    with pytest.raises(ValueError, match=words):
        take(published(change=lambda results: change(results["plan"])), grown, empty)
    assert not empty.results()


def other_models(results):
    results["settings"]["one"]["before"]["student"]["accuracy"] = 0.75


def test_runs_of_other_models_are_refused_at_once_where_the_setting_is_ready(published, plan_data, compared):
    layout = compared(plan_data, only=["opd"])
    with pytest.raises(
        ValueError, match=r"different models or prompts in one: .* accuracy was 0\.75 there and is 0\.25"
    ):
        take(published(change=other_models), plan_data, layout)
    assert len(layout.results()) == 2


def test_runs_of_other_models_are_found_out_when_the_setting_is_prepared(published, grown, compared, empty):
    take(published(change=other_models), grown, empty)
    layout = compared(grown)
    assert "different models or prompts" in collect(layout)["settings"]["one"]["error"]
    assert not any(cell["label"] == "fkl" for cell in layout.results().values()), "nothing ran beside them"


def test_rounding_of_another_machine_is_not_another_model(published, grown, compared, empty):
    def shift(results):
        for scores in results["settings"]["one"]["before"].values():
            scores.update({name: value * (1 + 1e-6) for name, value in scores.items()})

    take(published(change=shift), grown, empty)
    assert collect(compared(grown))["settings"]["one"]["error"] is None


def test_a_report_is_made_of_published_results_alone(published, grown, tmp_path):
    results = report_only(read_plan(grown), tmp_path / "shown", [published()])
    assert len(results["cells"]) == 8
    assert "| student | 25.0 |" in (tmp_path / "shown" / "tables.md").read_text(), "scores before training came along"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no such file"),
        ("{", "is not JSON"),
        ("[]", "not the results.json of a comparison"),
        ('{"format": 99, "plan": {}, "settings": {}, "cells": {}}', "of format 99"),
    ],
)
def test_a_file_that_is_none_is_a_sentence(grown, empty, tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        take(tmp_path / "a.json", grown, empty)
