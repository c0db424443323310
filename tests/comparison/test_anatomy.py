"""What runs learned from and on which tokens models part, by hand from a few logged lines."""

import math

import pytest

from tropd.atomic_files import append_jsonl
from tropd.comparison.layout import Layout
from tropd.comparison.report.logged_series import course_of
from tropd.comparison.report.token_analysis import doubt_table, phase_table


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path)


def cells(*names):
    return {name: [{"name": name, "seed": 1}] for name in names}


def phases(layout, *names):
    courses = {name: course_of(layout.cell(name)) for name in names}
    return phase_table({name: [{"name": name, "seed": 1, "course": course}] for name, course in courses.items()})


def log_steps(layout, name, *, lengths, outliers, guidance=0.0):
    for number, (length, outlier) in enumerate(zip(lengths, outliers, strict=True), start=1):
        step = {
            "step": number, "response/length": length, "guidance/prefix_length": 90.0 - length, "grad_norm": number,
            "regions/num_trust": 10.0 * length - outlier, "regions/num_outlier": outlier, "loss/trust": 0.5,
            "loss/outlier": outlier / 100, "loss/guidance": guidance,
        }  # fmt: skip
        append_jsonl(layout.cell(name) / "metrics.jsonl", [step])


def log_rollout(layout, name, step, *tokens):
    written = [{"text": text, "region": region, "log_ratio": math.log(ratio)} for text, region, ratio in tokens]
    append_jsonl(layout.cell(name) / "rollouts" / f"step-{step:06d}.jsonl", [{"step": step, "tokens": written}])


def test_thirds_of_a_run_are_told_apart(layout):
    log_steps(layout, "tropd", lengths=[2, 2, 10, 20, 40, 80], outliers=[0, 4, 10, 20, 100, 200], guidance=0.001)
    head, rows = phases(layout, "tropd")
    assert [row[:2] for row in rows] == [["tropd", "first"], ["tropd", "middle"], ["tropd", "last"]]
    assert dict(zip(head, rows[0], strict=True)) == {
        "method": "tropd", "third of the steps": "first", "student tokens per rollout": "2.0",
        "prefix tokens per rollout": "88.0", "outliers (%)": "10.0", "loss: trusted": "0.5000",
        "loss: outliers": "0.0200", "loss: prefix": "0.0010", "gradient norm": "1.50",
    }  # fmt: skip
    assert rows[2][2] == "60.0" and rows[2][4] == "25.0", "of tokens, and not a mean of shares: 300 of 1,200"


def test_runs_without_metrics_or_with_few_steps_have_no_thirds(layout):
    log_steps(layout, "short", lengths=[1, 2], outliers=[0, 0])
    assert phases(layout, "short", "taken over")[1] == []


def test_what_was_not_logged_is_no_zero(layout):
    append_jsonl(layout.cell("old") / "metrics.jsonl", [{"step": n, "response/length": 3.0} for n in range(3)])
    assert phases(layout, "old")[1][0] == ["old", "first", "3.0", *["–"] * 6]


def test_a_token_counts_with_the_chance_that_the_gate_rejects_it(layout):
    """Three student tokens, one to each third; what the teacher likes better is never rejected."""
    tokens = [("a", "guidance", 0.01), (" 7", "trust", 4.0), ("\n", "outlier", 0.5), (" 7", "trust", 0.25)]
    log_rollout(layout, "opd", 1, *tokens)
    _, rows = doubt_table(cells("opd"), layout, "opd")
    assert rows[0] == ["before training (opd)", "3", "0.0", "50.0", "75.0", "' 7' 60%, '\\n' 40%"]
    assert rows[1][1:] == rows[0][1:], "one log is the first and the last"


def test_the_start_is_the_reference_s_first_log_and_the_end_each_method_s_last(layout):
    for name, end in (("opd", 0.5), ("tropd", 0.1)):
        log_rollout(layout, name, 1, ("a", "trust", 0.2))
        log_rollout(layout, name, 9, ("b", "trust", end))
    _, rows = doubt_table(cells("opd", "tropd", "taken over"), layout, "opd")
    assert [(row[0], row[2]) for row in rows] == [("before training (opd)", "80.0"), ("opd", "50.0"), ("tropd", "90.0")]


def test_agreement_is_said(layout):
    log_rollout(layout, "opd", 1, ("a", "trust", 1.0))
    assert doubt_table(cells("opd"), layout, "opd")[1][0][-1] == "nowhere"
    assert doubt_table(cells("taken over"), layout, "opd")[1] == []
