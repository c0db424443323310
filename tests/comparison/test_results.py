"""What is made of cells: means, errors, paired differences by hand, tables, and a report of what is there."""

import json
import random
from statistics import stdev

import pytest

from tropd.comparison.report.logged_series import LOGGED
from tropd.comparison.report.results import _interval, collect
from tropd.comparison.report.tables import tables_markdown
from tropd.comparison.run import _as_json, publish
from tropd.evaluation import statistics
from tropd.evaluation.statistics import bootstrap_interval
from tropd.training.logging.metrics import METRICS

RATES = [1.0e-3, 3.0e-3]


def method(results, label):
    return results["settings"]["one"]["methods"][label]


def test_means_errors_and_differences_are_those_of_the_cells(finished):
    """The fake cells: reverse KL is 1 / (1 + letters + seed) + rate, `opd` has 3 letters of 10 right, `tropd` 5."""
    results = collect(finished)
    kl = method(results, "opd")["metrics"]["student_states/reverse_kl"]
    values = [1 / 5 + 1e-3, 1 / 6 + 1e-3]
    assert kl["mean"] == pytest.approx(sum(values) / 2)
    assert kl["standard_error"] == pytest.approx(stdev(values) / 2**0.5) and kl["n"] == 2
    difference = method(results, "tropd")["differences"]["student_states/reverse_kl"]
    by_seed = [1 / 7 - 1 / 5, 1 / 8 - 1 / 6]
    assert difference["mean"] == pytest.approx(sum(by_seed) / 2)
    half = 12.706 * abs(by_seed[0] - by_seed[1]) / 2  # Student's t of one degree of freedom, over two seeds
    assert [difference["low"], difference["high"]] == pytest.approx([sum(by_seed) / 2 - half, sum(by_seed) / 2 + half])
    assert not difference["excludes_zero"] and method(results, "opd")["differences"] == {}
    accuracy = method(results, "tropd")["differences"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(0.2) and accuracy["low"] < 0.2 < accuracy["high"]


def test_a_bootstrap_draws_seeds_and_problems():
    # Two seeds with one number each: the mean of two draws is 0 (¼), ½ (½) or 1 (¼).
    assert bootstrap_interval([[0.0], [1.0]]).low == 0.0 and bootstrap_interval([[0.0], [1.0]]).high == 1.0
    # One seed with n problems: the normal approximation 1.96 · sd / √n.
    found = bootstrap_interval([[1.0, 0.0] * 200])
    assert found.mean == 0.5 and found.low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.005)
    first = bootstrap_interval([[1.0, 0.0, 0.0]])
    statistics._weights.cache_clear()
    assert bootstrap_interval([[1.0, 0.0, 0.0]]) == first, "the draws are seeded"
    assert bootstrap_interval([[0.3]]).low != bootstrap_interval([[0.3]]).low, "one number has no interval (nan)"


def test_the_tables_have_the_layout_of_the_paper(finished):
    text = (finished.root / "tables.md").read_text()
    assert "| method | mathematics | Δ to opd |" in text
    assert "| opd | 30.0 ± 0.0 | – |" in text
    assert "| tropd | 50.0 ± 0.0 | +20.0 [" in text
    assert "| tropd | 0.001† | 2 of 2 | 8 | 1,000 | 0 | 0.0 |" in text, "a rate at the edge of the grid is marked"


def test_results_json_has_every_cell_and_survives_json(finished):
    layout = finished
    written = json.loads((layout.root / "results.json").read_text())
    assert set(written["cells"]) == set(layout.results()) and written["plan"]["seeds"] == [1, 2]
    assert written["environments"] and written == json.loads(json.dumps(collect(layout)))


def test_results_json_keeps_every_character_of_what_it_puts_on_one_line():
    data = {"words": ["two  spaces", " [\n] ", "tab\t\u2028"], "numbers": [1, 2.5, None], "nested": [[1], {"a": []}]}
    text = _as_json(data)
    assert json.loads(text) == data and '"numbers": [1, 2.5, null]' in text


def test_a_text_with_a_pipe_stays_in_its_cell(finished):
    results = collect(finished)
    results["cells"]["a"] = {"failure": "x | y\nz", "error": None, "scores": None}
    assert "| a | ended early | x \\| y z |" in tables_markdown(results)


def report(layout):
    publish(layout)
    return (layout.root / "report.html").read_text()


def test_what_a_model_wrote_never_becomes_part_of_the_page(finished):
    page = report(finished)
    assert "<script" not in page and "&lt;script&gt;alert(&#39;a rollout&#39;)&lt;/script&gt;" in page


def test_the_page_says_what_runs_learned_from_and_where_models_part(finished):
    page = report(finished)
    assert "What the runs trained on, and when" in page and "Where student and teacher disagree" in page


def test_the_page_needs_no_other_file(finished):
    page = report(finished)
    assert not any(word in page for word in ("http:", "https:", "src=", "@import", "url("))
    assert page.count("<figure>") == 11, "nine charts over steps, two of differences"


def test_a_report_renders_with_one_method_and_one_seed(compared, plan_data):
    page = report(compared(plan_data | {"methods": {"opd": None}, "seeds": [1], "learning_rates": [1e-3]}))
    assert "30.0" in page and "NaN" not in page and "nan" not in page


def test_a_report_renders_with_a_failed_cell_and_without_metrics(compared, plan_data, monkeypatch):
    failing = "one--tropd--report-lr0.001-seed2"
    monkeypatch.setenv("FAKE_ERROR", failing)
    layout = compared(plan_data)
    (layout.cell("one--opd--report-lr0.001-seed1") / "metrics.jsonl").unlink()
    for folder in (layout.root / "cells").glob("one--tropd*"):
        for file in folder.glob("metrics.jsonl"):
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            file.write_text("".join(json.dumps({"step": n, "response/length": 3.0}) + "\n" for n in range(len(lines))))
    page = report(layout)
    assert "Failed or stopped runs" in page and failing in page and "the fake cell could not" in page
    assert "tropd (1 failed, 1 of 2 seeds)" in page


def test_a_report_renders_while_nothing_is_done(compared, plan_data, monkeypatch):
    layout = compared(plan_data, only=["tropd"])
    page = report(layout)
    assert "0 of 2" in page and "opd (not run yet)" in page
    assert "opd (rate not chosen yet)" in report(compared(plan_data | {"learning_rates": RATES}, only=["tropd"]))


def test_rows_of_fewer_seeds_than_planned_say_so(compared, plan_data):
    compared(plan_data | {"seeds": [1]}, only=["tropd"])
    layout = compared(plan_data, only=["opd"])
    assert "| tropd (1 of 2 seeds) | 50.0 |" in (layout.root / "tables.md").read_text()


def test_divergences_that_differ_beyond_the_seeds_are_marked_and_noise_seldom_is():
    """Student's t, at its nominal 5%; a bootstrap of three numbers would mark one in four of no difference at all."""
    assert _interval([[0.5], [0.51], [0.49]])["excludes_zero"]
    rng = random.Random(0)
    marked = sum(_interval([[rng.gauss(0, 1)] for _ in range(3)])["excludes_zero"] for _ in range(1000))
    assert 30 <= marked <= 70


def test_one_seed_is_marked_in_no_table():
    found = _interval([[1.0] * 90 + [0.0] * 10])
    assert found["low"] > 0 and not found["excludes_zero"]
    assert _interval([[0.3]]) == {"mean": 0.3, "low": None, "high": None, "n": 1, "excludes_zero": False}


def test_a_rate_that_failed_leaves_the_edge_to_those_that_were_measured(compared, plan_data, monkeypatch):
    monkeypatch.setenv("FAKE_ERROR", "one--opd--grid-lr0.01-seed0")
    results = collect(compared(plan_data | {"learning_rates": [1e-3, 3e-3, 1e-2], "methods": {"opd": None}}))
    assert method(results, "opd")["grid"]["0.01"] is None and method(results, "opd")["errors"] == 1
    found = {tried: score for tried, score in method(results, "opd")["grid"].items() if score is not None}
    assert len(found) == 2 and method(results, "opd")["at_edge"], "of two rates each is an edge"


def test_accuracy_is_drawn_of_runs_without_curves(compared, plan_data):
    layout = compared(plan_data)
    for file in layout.root.glob("cells/*/metrics.jsonl"):
        file.unlink()
    page = report(layout)
    assert page.count("<figure>") == 3 and "Some runs have no logged series: opd (0 of 2), tropd (0 of 2)." in page


def test_every_name_of_a_course_is_one_that_training_logs():
    assert set(LOGGED) <= {*METRICS, "grad_norm"}
