"""What a person reads: 80 columns, no colour needed, model text harmless; and the same as JSON."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from preflight.test_verdict import CLOSE, OTHER, judged
from tropd.preflight.findings import Finding
from tropd.preflight.screen import as_dict, render_findings, render_measurement, render_verdict

FINDINGS = [
    Finding("ok", "vocabulary", "Both agree."),
    Finding("warning", "teacher's view", "From token 5 on it will see '[bold]x[/bold]' " + "and so on " * 20),
]


def printed(text) -> str:
    console = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
    console.print(text)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        render_findings(FINDINGS),
        render_measurement(CLOSE),
        render_measurement(replace(CLOSE, trust_fraction=None, k1=None, gradient=None, positions=(), k_for_99=None)),
        render_verdict(judged(trust_fraction=0.4, truncated_share=0.9)),
        render_verdict(judged(collapsed_share=1.0)),
    ],
)
def test_nothing_is_wider_than_80_columns_and_plain_text_says_it_all(text):
    assert max(map(len, text.plain.splitlines())) <= 80
    assert printed(text) == text.plain + "\n"


def test_findings_name_their_level_and_show_text_as_text():
    plain = render_findings(FINDINGS).plain
    assert plain.startswith("ok       vocabulary\n")
    assert "warning  teacher's view" in plain
    assert "[bold]x[/bold]" in printed(render_findings(FINDINGS))


def test_the_measurement_draws_trust_by_place():
    lines = render_measurement(replace(CLOSE, nonfinite_tokens=7)).plain.splitlines()
    (first,) = [line for line in lines if line.strip().startswith("0–15")]
    assert first.count("█") == 23 and first.count("·") == 1 and "0.97" in first and "1000 tokens" in first
    assert any("forecast of OPD's gradient" in line and "90% from outliers" in line for line in lines)
    assert lines[0] == "64 rollouts of 16 prompts, 4000 tokens scored"
    assert any(line.split() == ["tokens", "without", "a", "teacher", "score", "7"] for line in lines)


def test_endings_are_a_table_where_there_is_more_than_one():
    lines = render_measurement(replace(CLOSE, endings=OTHER)).plain.splitlines()
    assert any(line.split() == ["2", "90%", "0%", "90%", "0%"] for line in lines)
    assert any("100.0% of 58 responses that end" in line for line in lines)
    assert not any("teacher would" in line for line in render_measurement(CLOSE).plain.splitlines())


def test_what_is_absent_is_a_dash():
    assert "trust fraction (1 − TV)           –" in render_measurement(replace(CLOSE, trust_fraction=None)).plain


def test_the_verdict_ends_with_what_to_type():
    plain = render_verdict(judged(trust_fraction=0.4, truncated_share=0.9)).plain
    assert plain.splitlines()[0] == "verdict  far apart: use a trust region and teacher prefixes"
    assert plain.splitlines()[-1].strip() == "try: --method tropd --max_completion_length 200"
    assert "try:" not in render_verdict(judged(collapsed_share=1.0)).plain


def test_everything_is_json():
    verdict = judged()
    data = json.loads(json.dumps(as_dict(FINDINGS, CLOSE, verdict), allow_nan=False))
    assert data["findings"][0] == {"level": "ok", "subject": "vocabulary", "sentence": "Both agree."}
    assert data["measurement"]["positions"][1]["trust_fraction"] == 0.94
    assert (data["verdict"]["kind"], data["verdict"]["method"]) == ("safe", "tropd")
    assert as_dict([])["measurement"] is None
