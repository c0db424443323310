"""`tropd compare`: mistakes in sentences, progress, and what it leaves."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

PLAN = {
    "settings": {"one": {"domains": ["mathematics"], "student": "student", "teacher": "generalist"}},
    "methods": {"opd": None, "tropd": None},
    "seeds": [1],
    "student_tokens": 200,
    "prompts": {"train": 8, "validation": 2, "test": 4},
    "max_length": 16,
    "learning_rates": [1.0e-3],
    "prompts_per_step": 2,
    "rollouts_per_prompt": 2,
    "points": 1,
    "point_prompts": 2,
    "divergence_prompts": 2,
}
FAKE_WORKER = Path(__file__).parents[1] / "comparison" / "fake_worker.py"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Writes a plan; where one stands is a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN | changes))
        return "plan.yaml"

    return write


@pytest.fixture
def fake(monkeypatch):
    """Workers that train nothing."""
    from tropd.comparison.schedule import Schedule

    build = Schedule.__init__

    def with_fake_workers(self, *arguments, **options):
        build(self, *arguments, **options)
        self.command = (sys.executable, str(FAKE_WORKER))

    monkeypatch.setattr(Schedule, "__init__", with_fake_workers)


@pytest.mark.parametrize(
    ("changes", "words", "sentence"),
    [
        ({}, ["--jobs", "0"], "--jobs is 0"),
        ({}, ["--only", "three"], "--only is 'three'"),
        ({"methods": {"topd": None}}, [], "plan.yaml, line 6: methods.topd: method is 'topd'"),
        ({"settings": {"one": {"domains": ["code"], "student": "a", "teacher": "b/c/d"}}}, [], "settings.one: "),
        ({}, ["--report-only"], "holds no comparison yet"),
        ({}, ["--from", "theirs.json"], "--from is 'theirs.json', but there is no such file"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(plan, tropd, changes, words, sentence):
    outcome = tropd("compare", plan(**changes), "--out", "out", *words)
    assert outcome.code == 2 and sentence in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize(("text", "sentence"), [(None, "no such file"), ("a: [", "is not YAML"), ("3", "should map")])
def test_a_plan_that_cannot_be_read_is_a_sentence(tmp_path, monkeypatch, tropd, text, sentence):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("plan.yaml").write_text(text)
    outcome = tropd("compare", "plan.yaml", "--out", "out")
    assert outcome.code == 2 and sentence in outcome.err


def test_it_shows_progress_the_table_and_where_the_report_is(plan, tropd, fake):
    outcome = tropd("compare", plan(), "--out", "out", "--jobs", "1", "--hardware", "a <fast> machine")
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("2 cells, 0 done already\npreparing one ...\n"), "there is something to see at once"
    assert "1/2 cells  one/opd report lr 0.001 seed 1: 30.0%, " in outcome.err and "left" in outcome.err
    assert "tropd" in outcome.out and "50.0" in outcome.out and "written  out/report.html" in outcome.out
    assert "a &lt;fast&gt; machine" in Path("out/report.html").read_text()


def test_what_is_under_way_says_how_far_it_is_now_and_then(capsys):
    from tropd.cli.compare import SECONDS_BETWEEN_LINES, _Screen
    from tropd.comparison.layout import Told
    from tropd.comparison.schedule import Progress

    now = [0.0]
    screen = _Screen(clock=lambda: now[0])
    told = {"one/opd": Told("step 3 of about 8", 0.375)}
    progress = Progress(0, 2, None, True, None, ["one/opd", "one/tropd"], 90.0, told)
    for seconds in (0.0, SECONDS_BETWEEN_LINES - 1, SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LINES + 1):
        now[0] = seconds
        screen.show(progress)
    left = "; about 1 min 30 s left"
    said = capsys.readouterr().err.splitlines()
    assert said == [f"2 cells, 0 done already{left}", f"0/2 cells  one/opd: step 3 of about 8{left}"]


def test_the_same_command_does_nothing_twice_and_the_report_alone_can_be_made_again(plan, tropd, fake):
    assert tropd("compare", plan(), "--out", "out").code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out/cells").rglob("*")}
    Path("out/report.html").unlink()
    assert "2 cells, 2 done already" in tropd("compare", "plan.yaml", "--out", "out").err
    Path("out/report.html").unlink()
    assert tropd("compare", "plan.yaml", "--out", "out", "--report-only").code == 0
    assert Path("out/report.html").is_file()
    assert before == {path: path.stat().st_mtime_ns for path in Path("out/cells").rglob("*")}


def test_failed_cells_are_exit_code_1_until_they_are_retried(plan, tropd, fake, monkeypatch):
    monkeypatch.setenv("FAKE_ERROR", "one--opd--report-lr0.001-seed1")
    outcome = tropd("compare", plan(), "--out", "out")
    assert outcome.code == 1 and "1 cell failed" in outcome.err and "--retry-failed" in outcome.err
    monkeypatch.delenv("FAKE_ERROR")
    assert tropd("compare", "plan.yaml", "--out", "out").code == 1
    assert tropd("compare", "plan.yaml", "--out", "out", "--retry-failed").code == 0


def test_runs_are_taken_over_from_published_results(plan, tropd, fake):
    assert tropd("compare", plan(), "--out", "theirs").code == 0
    plan(methods={"opd": None, "tropd": None, "fkl": None})
    outcome = tropd("compare", "plan.yaml", "--out", "out", "--from", "theirs/results.json")
    assert outcome.code == 0 and "3 cells, 2 done already" in outcome.err, outcome.err
    shown = tropd("compare", "plan.yaml", "--out", "shown", "--from", "theirs/results.json", "--report-only")
    assert shown.code == 0 and "tropd" in shown.out and not Path("shown/logs").exists()


@pytest.fixture
def harmless():
    """A handler of SIGTERM, so that a signal that comes late does not end the tests."""

    def ignore(number, frame):
        pass

    earlier = signal.signal(signal.SIGTERM, ignore)
    yield ignore
    signal.signal(signal.SIGTERM, earlier)


def test_sigterm_publishes_what_has_ended_and_the_same_command_goes_on(plan, tropd, fake, monkeypatch, harmless):
    monkeypatch.setenv("FAKE_SECONDS", "1")
    sender = threading.Thread(target=_terminate_when, args=(lambda: list(Path("out/cells").glob("*/result.json")),))
    sender.start()
    with pytest.raises(SystemExit) as exit_:
        tropd("compare", plan(), "--out", "out", "--jobs", "1")
    sender.join()
    assert exit_.value.code == 128 + signal.SIGTERM
    assert len(json.loads(Path("out/results.json").read_text())["cells"]) == 1 and Path("out/report.html").is_file()
    outcome = tropd("compare", "plan.yaml", "--out", "out")
    assert outcome.code == 0 and "2 cells, 1 done already" in outcome.err
    assert signal.getsignal(signal.SIGTERM) is harmless


def _terminate_when(happened):
    deadline = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    if happened():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_the_real_command_compares_the_shipped_pair(plan, tropd):
    outcome = tropd("compare", plan(), "--out", "out", "--jobs", "2")
    assert outcome.code == 0, outcome.err
    page = Path("out/report.html").read_text()
    assert page.count("<polyline") >= 16 and "Sample rollouts" in page
