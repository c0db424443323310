"""`tropd compare`: methods side by side at one budget, from a plan to a report."""

import argparse
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ..visible import visible
from . import console
from .options import add_option

if TYPE_CHECKING:
    from ..comparison.schedule import Progress

HELP = "methods side by side at one budget, with a report"

DESCRIPTION = """\
Compare methods in several settings over seeds, all at the same budget of student-written tokens.

With the same seed every method sees the same prompts in the same order. Each method's learning rate is the best of a
small grid on validation prompts; test prompts are used once, by the reported runs.

Every run is a process with one thread, and its folder appears when it is complete: if it is killed, the same command
resumes, and what was under way starts again. A run that fails is recorded, and the others continue.

It writes results.json (every cell, failures included), tables.md and report.html, a self-contained page.
Exit code 1 if runs failed: --retry-failed runs them again."""

EPILOG = """\
examples:
  tropd compare recipe:proving_ground/demo --out runs/demo
  tropd compare recipe:stories260k --teacher STORIES --out runs/stories --jobs 2
  tropd compare plan.yaml --out runs/plan --only 'multi-domain/*' --only opd
  tropd compare plan.yaml --out runs/plan --report-only
  tropd compare my-plan.yaml --out runs/mine --from runs/others/results.json --only my_method

How the numbers are computed: docs/compare.md."""


SECONDS_BETWEEN_LINES = 20.0
PREPARING = "preparing "
"""The description of a task that is not a cell begins with this."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN", help="YAML file, such as recipe:proving_ground/demo")
    option, files = partial(add_option, parser), {"action": "append", "default": []}
    option("out", "folder for all output; a comparison in it is resumed", type=Path, required=True, metavar="DIR")
    option("teacher", "the teacher for settings that name none", metavar="DIR")
    option("jobs", "parallel runs, one thread each (default: all cores)", type=int, metavar="N")
    option("only", "this setting, method or pattern such as 'multi-domain/*'; may be repeated", metavar="NAME", **files)
    option("retry_failed", "rerun cells that ended in an error", action="store_true")
    option("report_only", "write tables and report for the results so far", action="store_true")
    told = "import runs from this results.json instead of running them; may be repeated"
    option("from", told, dest="sources", type=Path, metavar="FILE", **files)
    option("hardware", "a description of the machine, for the report", metavar="WORDS")


def run(options: argparse.Namespace) -> int:
    from ..comparison.plan_file import load_plan
    from ..comparison.run import compare, report_only

    jobs = console.cores() if options.jobs is None else options.jobs
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; at least one run is needed. Use 1 or more, or remove it.")
    plan = load_plan(options.plan, options.teacher)
    if options.report_only:
        return _end(report_only(plan, options.out, options.sources, options.hardware), options.out)
    with _sigterm_as_exit(), _Screen() as screen:
        results = compare(
            plan,
            options.out,
            jobs=jobs,
            only=options.only,
            retry_failed=options.retry_failed,
            sources=options.sources,
            hardware=options.hardware,
            report=screen.show,
        )
    return _end(results, options.out)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Inside, SIGTERM unwinds as Ctrl-C does: workers are stopped, tables and report written."""

    def leave(number: int, frame: Any) -> None:  # says nothing: a line may be half printed when a signal comes
        raise SystemExit(128 + number)

    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except SystemExit:
        console.say(
            "stopped by SIGTERM; tables and report of the finished cells are written. The same command resumes, and a "
            "cell under way starts again, even if only its measurement was missing."
        )
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)


class _Screen:
    """A line when a cell ends, and between how far those under way are: on a terminal in place, else now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.status = console.err().status("starting") if console.err().is_terminal else None
        self.begun = False
        self.announced: set[str] = set()
        self.clock, self.said = clock, clock()

    def __enter__(self) -> "_Screen":
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(self, *args: object) -> None:
        if self.status is not None:
            self.status.stop()

    def show(self, progress: "Progress") -> None:
        if not self.begun:
            console.say(f"{progress.total} cells, {progress.done} done already{_left(progress)}")
            self.begun = True
        if self.status is not None:
            under_way = ", ".join(_how_far(words, progress) for words in progress.running)
            self.status.update(escape(visible(f"{progress.done}/{progress.total} cells{_left(progress)}: {under_way}")))
        else:
            for words in progress.running:
                if words.startswith(PREPARING) and words not in self.announced:
                    console.say(f"{words} ...")
                    self.announced.add(words)
            self._tell_now_and_then(progress)
        if progress.ended is None:
            return
        how = _outcome(progress.result) if progress.ended.cell is not None else "ready" if progress.well else "failed"
        console.say(f"{progress.done}/{progress.total} cells  {progress.ended.words}: {how}{_left(progress)}")

    def _tell_now_and_then(self, progress: "Progress") -> None:
        """So often that nobody wonders whether it hangs, and so seldom that a log can be read."""
        if progress.ended is not None:
            self.said = self.clock()
        elif progress.told and self.clock() - self.said >= SECONDS_BETWEEN_LINES:
            told = [_how_far(words, progress) for words in progress.running if words in progress.told]
            console.say(f"{progress.done}/{progress.total} cells  {'; '.join(told)}{_left(progress)}")
            self.said = self.clock()


def _how_far(words: str, progress: "Progress") -> str:
    told = progress.told.get(words)
    return words if told is None else f"{words}: {told.words}"


def _left(progress: "Progress") -> str:
    if progress.seconds_left is None or progress.done == progress.total:
        return ""
    return f"; about {console.duration(progress.seconds_left)} left"


def _outcome(result: Any) -> str:
    if result is None or result.get("error"):
        return f"failed: {(result or {}).get('error')}"
    shown = [("accuracy", 100, ".1f", "%"), ("student_states/reverse_kl", 1, ".3f", " nats reverse KL")]
    scores = result["scores"]
    words = [f"{scores[name] * factor:{form}}{unit}" for name, factor, form, unit in shown if name in scores]
    ended = ["ended early"] if result.get("failure") else []
    return ", ".join([*words, *ended, f"{result['steps']} steps in {console.duration(result['seconds'])}"])


def _end(results: dict[str, Any], out: Path) -> int:
    """The tables that matter most, where everything is, and what failed."""
    from ..comparison.report.tables import accuracy_table, difference_table

    for name, setting in results["settings"].items():
        if setting["error"]:
            console.warn(f"{name} could not be prepared: {setting['error']}")
            continue
        reference = results["plan"]["reference"]
        if setting["graded"]:
            _show(name, "accuracy on test problems, %", *accuracy_table(setting, reference))
        elif (table := difference_table(setting, reference)) is not None:
            head, rows = table
            _show(name, f"distance to the teacher compared with {reference}", head[:3], [row[:3] for row in rows])
    console.show(*(f"written  {out / file}{what}" for file, what in WRITTEN.items()))
    errors = sum(bool(cell.get("error")) for cell in results["cells"].values())
    unprepared = sum(bool(setting["error"]) for setting in results["settings"].values())
    if errors:
        many = "1 cell" if errors == 1 else f"{errors} cells"
        console.warn(f"{many} failed; {out / 'logs'} has the logs, and --retry-failed runs the failed cells again.")
    console.show(*_next(results, out))
    return 1 if errors or unprepared else 0


WRITTEN = {
    "results.json": "  every run, failures included",
    "tables.md": "     the tables as Markdown",
    "report.html": "   open it in a browser: scores, curves, rollouts by region",
}


def _next(results: dict[str, Any], out: Path) -> list[str]:
    cells = [out / "cells" / name for name, cell in results["cells"].items() if cell["kind"] == "report"]
    runs = [str(folder) for folder in cells if (folder / "run.json").is_file()]
    if not runs:
        return []
    return [
        f"next     tropd report {shlex.quote(runs[-1])}",
        "           one of its runs, token by token",
        "         tropd check --student small/ --teacher large/ --data prompts.jsonl",
        "           what to expect of your own pair; then `tropd train` with the same options",
    ]


def _show(name: str, what: str, head: list[str], rows: list[list[str]]) -> None:
    """A table as wide as its words: in a log it is read whole, whatever the width of a screen."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [f"{name}: {what}"]
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    console.show(*lines, "")
