"""`tropd report` and `tropd show`: what a run was, in a browser and in the terminal."""

import pytest

from report.run_folders import HOSTILE, logged_rollouts, write_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", rollouts=logged_rollouts())
    return tmp_path


def test_a_report_is_written_into_the_runs_folder_or_where_it_is_wanted(folder, tropd):
    outcome = tropd("report", "run")
    assert outcome.code == 0 and "written: run/report.html" in outcome.err
    assert tropd("report", "run", "run", "--out", "both.html").code == 0
    assert "Token inspector" in (folder / "run" / "report.html").read_text() and (folder / "both.html").is_file()


def test_show_prints_the_last_logged_step_with_its_regions(folder, tropd):
    outcome = tropd("show", "run")
    assert outcome.code == 0 and "step 3, row 0: ended, lowest r -2.50" in outcome.out
    assert "⟦ 4 −2.5⟧" in outcome.out and "1 of 1 rollouts that match, of step 3" in outcome.err
    assert "\x1b" not in outcome.out and "\u202e" not in outcome.out and HOSTILE[:9] in outcome.out


def test_show_finds_rollouts_by_step_text_region_and_depth(folder, tropd):
    first = tropd("show", "run", "--step", "1", "--limit", "1")
    assert "«one» plus⟦ 9 −7.2⟧\n~~" in first.out and "1 of 2" in first.err and "--limit 2 shows all" in first.err
    deep = tropd("show", "run", "--all", "--region", "outlier", "--below", "-5")
    assert "step 1, row 0" in deep.out and "1 of 1 rollouts" in deep.err
    assert "step 1, row 1" in tropd("show", "run", "--all", "--text", "SORT").out
    assert "0 of 0 rollouts" in tropd("show", "run", "--text", "nowhere").err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show", "."], "has no run.json"),
        (["show", "run", "--step", "2"], "--step is 2, which was not logged. Logged steps: 1, 3."),
        (["show", "run", "--limit", "0"], "--limit is 0"),
        (["show", "run", "--all", "--step", "1"], "exclude each other"),
        (["report", "nowhere"], "has no run.json"),
        (["report", "run", "--out", "no/where.html"], "there is no folder"),
        (["report", "run", "--follow", "--out", "x.html"], "exclude each other"),
        (["report", "nowhere", "--follow"], "is not a folder"),
        (["report", "run", "--follow", "--port", "99999"], "--port is 99999"),
    ],
)
def test_a_mistake_is_a_sentence(folder, tropd, words, sentence):
    outcome = tropd(*words)
    assert outcome.code == 2 and sentence in outcome.err and "Traceback" not in outcome.err


def test_a_damaged_log_of_rollouts_is_named(folder, tropd):
    (folder / "run" / "rollouts" / "step-000003.jsonl").write_text("3\n")
    for command in ("show", "report"):
        outcome = tropd(command, "run")
        assert outcome.code == 2 and "step-000003.jsonl" in outcome.err
