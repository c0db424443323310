"""Cells on processes: a kill, a crash, an error, and going on where it was. The workers train nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tropd.comparison.cells import grid_cells, pairs, report_cells
from tropd.comparison.layout import RESULT, Layout
from tropd.comparison.plan_file import read_plan
from tropd.comparison.report.results import collect
from tropd.comparison.run import _forget_errors, compare, record_plan
from tropd.comparison.schedule import Schedule, Task, Worker
from tropd.comparison.time_left import GUIDED, Pace

PARENT = """
import json, sys
from pathlib import Path
from tropd.comparison.cells import grid_cells, pairs, report_cells
from tropd.comparison.layout import Layout
from tropd.comparison.plan_file import read_plan
from tropd.comparison.run import record_plan
from tropd.comparison.schedule import Schedule
out, worker, data = sys.argv[1:]
layout, plan = Layout(Path(out)), read_plan(json.loads(data))
with layout.locked() as lock:
    record_plan(plan, layout, None)
    Schedule(plan, layout, 2, lock=lock, command=(sys.executable, worker)).run()
"""


def test_every_cell_runs_once_and_the_reported_ones_at_the_chosen_rate(compared, plan_data):
    seen = []
    layout = compared(plan_data | {"learning_rates": [1.0e-3, 3.0e-3]}, report=seen.append)
    assert set(layout.results()) == {
        f"one--{label}--{end}"
        for label in ("opd", "tropd")
        for end in ("grid-lr0.001-seed0", "grid-lr0.003-seed0", "report-lr0.001-seed1", "report-lr0.001-seed2")
    }
    assert max(len(progress.running) for progress in seen) == 2, "at most as many workers as jobs"
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert (seen[-1].done, seen[-1].total, seen[-1].seconds_left) == (8, 8, 0.0)
    forecasts = [(8 - p.done, p.seconds_left) for p in seen if p.seconds_left is not None]
    whole = GUIDED * 2.0  # at most, of a cell
    assert all(0 <= left <= max(cells * whole / 2, whole) for cells, left in forecasts), "on two workers"


def test_all_choose_their_rates_first_and_then_go_seed_by_seed(compared, plan_data):
    seen = []
    compared(plan_data | {"learning_rates": [1.0e-3, 3.0e-3]}, jobs=1, report=seen.append)
    ended = [progress.ended.cell for progress in seen if progress.ended is not None and progress.ended.cell is not None]
    assert [(cell.kind, cell.label) for cell in ended[:4]] == [("grid", "opd")] * 2 + [("grid", "tropd")] * 2
    assert [(cell.seed, cell.label) for cell in ended[4:]] == [(1, "opd"), (1, "tropd"), (2, "opd"), (2, "tropd")]


def test_before_the_first_cell_has_ended_those_under_way_forecast_the_time_left(tmp_path, plan_data):
    plan, layout = read_plan(plan_data | {"seeds": [1]}), Layout(tmp_path / "out")
    schedule = Schedule(plan, layout, jobs=2)
    cells = [cell for pair in pairs(plan, []) for cell in report_cells(plan, *pair, 1.0e-3)]
    began = time.monotonic() - 30.0
    schedule.workers = [Worker(Task(cell.name, cell), process=None, started=began) for cell in cells]
    assert schedule._seconds_left({}) is None, "nothing was said yet"
    layout.tell(cells[0].name, "step 3 of about 12", 0.25)
    layout.tell(cells[1].name, "loading models")
    assert schedule._seconds_left({}) is None
    layout.tell(cells[1].name, "step 6 of about 12", 0.5)
    assert schedule._seconds_left({}) == pytest.approx(90.0, abs=1.0), "the slower one's: three times what it has taken"
    assert layout.told(cells[0].name) == ("step 3 of about 12", 0.25)
    schedule.workers = schedule.workers[:1]
    assert schedule._seconds_left({}) is None, "another is still to come"


@pytest.fixture
def forecast(plan_data):
    """The forecast for opd and tropd with a grid of two rates, where cells of the grid took so many seconds."""
    plan = read_plan(plan_data | {"learning_rates": [1.0e-3, 3.0e-3], "grid_tokens": 100})

    def of(**seconds):
        cells = [cell for label in seconds for cell in grid_cells(plan, "one", label)[:1]]
        done = {cell.name: vars(cell) | {"seconds": seconds[cell.label], "scores": {}} for cell in cells}
        return Pace(plan, done).of_missing(pairs(plan))

    return of


def test_time_left_counts_tokens_and_not_cells(forecast):
    assert forecast() is None, "nothing has ended yet"
    opd, tropd = 100 + 2 * 1000, 100 + 2 * 1000
    assert forecast(opd=2.0, tropd=6.0) == pytest.approx(opd * 2.0 / 100 + tropd * 6.0 / 100)


def test_time_left_knows_that_prefixes_take_longer_before_one_has_ended(forecast):
    """Of the method without runs both cells of the grid are missing."""
    one, two = 100 + 2 * 1000, 2 * 100 + 2 * 1000
    assert forecast(opd=2.0) == pytest.approx(one * 2.0 / 100 + two * GUIDED * 2.0 / 100)
    assert forecast(tropd=6.0) == pytest.approx(one * 6.0 / 100 + two * 6.0 / GUIDED / 100)


def test_time_left_is_of_this_machine_once_it_has_run_something(plan_data):
    plan = read_plan(plan_data)
    theirs, ours = report_cells(plan, "one", "opd", 1e-3)
    done = {theirs.name: vars(theirs) | {"seconds": 5000.0, "scores": {}, "taken_from": {"file": "theirs.json"}}}
    assert Pace(plan, done).of("one", "opd") == 5.0
    done[ours.name] = vars(ours) | {"seconds": 10.0, "scores": {}}
    assert Pace(plan, done).of("one", "opd") == pytest.approx(0.01)


def test_a_cell_that_takes_longer_than_forecast_leaves_the_others_their_time(compared, plan_data, monkeypatch):
    """The fake cells take 3 s and say that it was 2: while the second runs late, the third still has its 2 s."""
    monkeypatch.setenv("FAKE_SECONDS", "3")
    monkeypatch.setattr("tropd.comparison.schedule.TELL_EVERY", 0.1)
    seen = []
    compared(plan_data | {"methods": {"opd": None}, "seeds": [1, 2, 3]}, jobs=1, report=seen.append)
    left = [progress.seconds_left for progress in seen if progress.done == 1]
    assert max(left) == pytest.approx(4.0, abs=0.5) and min(left) == pytest.approx(2.0)


def test_the_last_cell_is_not_shared_out_among_the_workers(compared, plan_data, monkeypatch):
    """Three cells that say 2 s on two workers: the third takes 2 s, and not 1."""
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    monkeypatch.setattr("tropd.comparison.schedule.TELL_EVERY", 0.1)
    seen = []
    compared(plan_data | {"methods": {"opd": None}, "seeds": [1, 2, 3]}, report=seen.append)
    alone = [progress.seconds_left for progress in seen if progress.done == 2 and len(progress.running) == 1]
    assert max(alone) == pytest.approx(2.0, abs=0.5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_comparison_that_was_stopped_goes_on_where_it_was(compared, plan_data, tmp_path, monkeypatch, number):
    out = tmp_path / "out"
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    worker = str(Path(__file__).with_name("fake_worker.py"))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(out), worker, json.dumps(plan_data)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while len(done := sorted(out.glob(f"cells/*/{RESULT}"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.2)  # the next cells are under way
    finally:
        parent.send_signal(number)
        parent.wait()
    before = {file: file.stat().st_mtime_ns for file in done}
    monkeypatch.setenv("FAKE_SECONDS", "0")
    layout = compared(plan_data)
    assert len(layout.results()) == 4 and not any(cell["error"] for cell in layout.results().values())
    assert before == {file: file.stat().st_mtime_ns for file in done}, "what was done is not done again"
    assert not list((out / "running").glob("*/")), "what was under way is gone"


def test_two_comparisons_do_not_share_a_folder(compared, plan_data, tmp_path, monkeypatch):
    monkeypatch.setattr("tropd.comparison.layout.SECONDS_OF_A_LOCK", 0.0)
    with Layout(tmp_path / "out").locked(), pytest.raises(ValueError, match="another comparison is running"):
        compared(plan_data)


def test_the_folder_stays_locked_until_the_last_worker_of_a_killed_comparison_is_gone(tmp_path, plan_data, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    layout, worker = Layout(tmp_path / "out"), str(Path(__file__).with_name("fake_worker.py"))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(layout.root), worker, json.dumps(plan_data)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(layout.root.glob("running/one--*.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    monkeypatch.setattr("tropd.comparison.layout.SECONDS_OF_A_LOCK", 0.0)
    with pytest.raises(ValueError, match="another comparison is running"), layout.locked():
        pass
    monkeypatch.setattr("tropd.comparison.layout.SECONDS_OF_A_LOCK", 30.0)
    started = time.monotonic()
    with layout.locked():
        assert time.monotonic() - started < 30, "workers end with what started them, long before their 60 seconds"


def test_a_cell_that_raises_is_written_down_and_the_others_go_on(compared, plan_data, monkeypatch):
    failing = "one--tropd--report-lr0.001-seed1"
    monkeypatch.setenv("FAKE_ERROR", failing)
    layout = compared(plan_data)
    cells = collect(layout)["cells"]
    assert len(cells) == 4 and cells[failing]["error"] == "RuntimeError: the fake cell could not"
    assert "Traceback" in layout.log(failing).read_text()
    assert collect(layout)["settings"]["one"]["methods"]["tropd"]["seeds"] == [2]
    assert "the fake cell could not" in (layout.root / "tables.md").read_text()

    monkeypatch.delenv("FAKE_ERROR")
    assert compared(plan_data).results()[failing]["error"], "a failed cell is left alone until it is asked for"
    _forget_errors(layout, [("one", "tropd")])
    assert compared(plan_data).results()[failing]["error"] is None


def test_a_worker_that_dies_without_a_word_is_written_down(compared, plan_data, monkeypatch):
    dying = "one--opd--report-lr0.001-seed2"
    monkeypatch.setenv("FAKE_CRASH", dying)
    cells = compared(plan_data).results()
    assert "signal 9" in cells[dying]["error"] and len(cells) == 4


def test_only_runs_what_it_names(compared, plan_data):
    assert {cell["label"] for cell in compared(plan_data, only=["tropd"]).results().values()} == {"tropd"}


def test_a_plan_may_grow_and_may_not_change(compared, plan_data):
    layout = compared(plan_data, only=["opd"])
    grown = plan_data | {"seeds": [1, 2, 3], "methods": {**plan_data["methods"], "fkl": None}}
    record_plan(read_plan(grown), layout, None)
    null = {"trainer": {"max_grad_norm": None}}
    for change, words in (
        (null, r"trainer\.max_grad_norm \(not set, now null\)"),
        ({"max_length": 32}, r"max_length \(16, now 32\)\. Choose"),
        ({"methods": {"opd": {"ratio_clip": 0.2}}}, r"methods\.opd\.ratio_clip \(not set, now 0\.2\)\."),
    ):
        with pytest.raises(ValueError, match=f"a different plan: {words}"):
            record_plan(read_plan(plan_data | change), layout, None)


def test_a_plan_that_nothing_came_of_may_be_corrected(plan_data, tmp_path):
    layout = Layout(tmp_path / "out")
    record_plan(read_plan(plan_data | {"max_length": 32}), layout, "a machine")
    record_plan(read_plan(plan_data), layout, None)
    assert layout.read_state()["plan"]["max_length"] == 16


def test_only_what_is_run_again_is_forgotten(compared, plan_data, monkeypatch):
    """By another name, or by a mistake in it, a failure stays on record."""
    failed = "one--tropd--report-lr0.001-seed2"
    monkeypatch.setenv("FAKE_ERROR", failed)
    layout, plan = compared(plan_data), read_plan(plan_data)
    monkeypatch.setattr("tropd.comparison.run.Schedule.run", lambda schedule: None)
    with pytest.raises(ValueError, match="--only is 'nonsense'"):
        compare(plan, layout.root, jobs=1, only=["nonsense"], retry_failed=True)
    compare(plan, layout.root, jobs=1, only=["opd"], retry_failed=True)
    assert layout.results()[failed]["error"]
    compare(plan, layout.root, jobs=1, only=["tropd"], retry_failed=True)
    assert failed not in layout.results()


def test_an_error_of_an_earlier_attempt_is_forgotten_once_a_setting_is_ready(compared, plan_data):
    """Also where the attempt that made it ready was killed before it could remove the error."""
    layout = compared(plan_data)
    layout.setting_error("one").write_text("it could not")
    assert collect(layout)["settings"]["one"]["error"] is None


def test_a_setting_that_cannot_be_prepared_is_said_and_tried_again(compared, plan_data, monkeypatch):
    monkeypatch.setenv("FAKE_ERROR", "one")
    seen = []
    layout = compared(plan_data, report=seen.append)
    assert not layout.results() and not seen[-1].well
    assert "the fake setting could not" in collect(layout)["settings"]["one"]["error"]
    assert "could not be prepared" in (layout.root / "report.html").read_text()
    monkeypatch.delenv("FAKE_ERROR")
    assert len(compared(plan_data).results()) == 4
    assert collect(layout)["settings"]["one"]["error"] is None
