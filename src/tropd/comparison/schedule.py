"""Tasks on worker processes: settings are prepared, then cells run, at most `jobs` at once. No torch here.

Finished work is read from the disk each time a worker ends, so a killed comparison resumes where it was.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..atomic_files import write_whole
from .cells import GRID, Cell, count_cells, next_cells, pairs
from .layout import RESULT, Layout, Told
from .plan import Plan
from .time_left import Pace

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
ONE_THREAD = dict.fromkeys(THREADS, "1") | {"TOKENIZERS_PARALLELISM": "false"}
LEAST_SHARE = 0.1
"""Of a cell, before its pace says how long the whole takes."""
LOOK_EVERY, TELL_EVERY = 0.2, 5.0
"""Seconds between two looks at the workers, and between two forecasts of the time left."""

WORKER = (sys.executable, "-m", "tropd.comparison.cell.worker")
"""What is started for a task, told the comparison's folder and the file of the task."""


@dataclass(frozen=True)
class Task:
    """A setting to prepare, or a cell to run."""

    name: str
    cell: Cell | None

    @property
    def words(self) -> str:
        return f"preparing {self.name}" if self.cell is None else str(self.cell)


@dataclass
class Worker:
    """A process at work on a task."""

    task: Task
    process: subprocess.Popen
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Progress:
    """Progress of a comparison, in cells; of what runs, how far each `told` it is.

    `ended` is the task that has just ended, `well` where it did (a cell that collapsed did), with its `result`.
    `seconds_left` is `None` before the first cell.
    """

    done: int
    total: int
    ended: Task | None
    well: bool
    result: Mapping[str, Any] | None
    running: Sequence[str]
    seconds_left: float | None
    told: Mapping[str, Told] = field(default_factory=dict)


class Schedule:
    """Runs what of a comparison is not on the disk yet.

    Workers inherit the descriptor `lock`, so that the folder stays locked until the last of them is gone.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        jobs: int,
        only: Sequence[str] = (),
        lock: int | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        command: Sequence[str] = WORKER,
    ):
        self.plan, self.layout, self.jobs, self.lock, self.report = plan, layout, jobs, lock, report
        self.command = command
        self.pairs = pairs(plan, only)
        self.workers: list[Worker] = []
        self.unprepared: set[str] = set()

    def run(self) -> None:
        """Work until everything is done; workers are stopped where this is interrupted."""
        self.layout.forget_running()
        self._tell(None)
        try:
            while True:
                while len(self.workers) < self.jobs and (task := self._next()) is not None:
                    self.workers.append(Worker(task, self._start(task)))
                    self._tell(None)
                if not self.workers:
                    return
                self._wait_for_one()
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.wait()
            self.layout.forget_running()

    def _next(self) -> Task | None:
        """What comes next of what is neither done nor under way, and whose needs are met.

        Settings are prepared first. Then cells in rounds: the grids of all, then seed by seed, so that a comparison
        that is stopped early has few seeds of every method, and not all seeds of a few.
        """
        results, busy = self.layout.results(), {worker.task.name for worker in self.workers}
        waiting: list[Cell] = []
        for setting, label in self.pairs:
            if self.layout.is_ready(setting):
                cells = next_cells(self.plan, (setting, label), results)[0]
                waiting += [cell for cell in cells if cell.name not in busy and cell.name not in results]
            elif setting not in busy | self.unprepared:
                return Task(setting, None)
        seeds = self.plan.seeds
        first = min(waiting, key=lambda cell: 0 if cell.kind == GRID else 1 + seeds.index(cell.seed), default=None)
        return None if first is None else Task(first.name, first)

    def _start(self, task: Task) -> subprocess.Popen:
        described = {"parent": os.getpid()} | (
            {"prepare": task.name} if task.cell is None else {"cell": asdict(task.cell)}
        )
        folder, log = self.layout.root / "running", self.layout.log(task.name)
        folder.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        (file := folder / f"{task.name}.json").write_text(json.dumps(described), encoding="utf-8")
        with log.open("w", encoding="utf-8") as stream:
            return subprocess.Popen(
                [*self.command, str(self.layout.root), str(file)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | ONE_THREAD,
                start_new_session=True,  # an interruption from the keyboard is ours to pass on
                pass_fds=() if self.lock is None else (self.lock,),
            )

    def _wait_for_one(self) -> None:
        told = time.monotonic()
        while (worker := next((w for w in self.workers if w.process.poll() is not None), None)) is None:
            time.sleep(LOOK_EVERY)
            if time.monotonic() - told > TELL_EVERY:
                self._tell(None)
                told = time.monotonic()
        self.workers.remove(worker)
        self._take_in(worker)
        self._tell(worker.task)

    def _take_in(self, worker: Worker) -> None:
        """A worker that left no trace was ended from outside, such as by a machine short of memory: an error too."""
        task = worker.task
        if task.cell is None:
            if not self.layout.is_ready(task.name):
                self.unprepared.add(task.name)
                if not self.layout.setting_error(task.name).is_file():
                    write_whole(self.layout.setting_error(task.name), _ended(worker) + "\n")
            else:
                self.layout.setting_error(task.name).unlink(missing_ok=True)
        elif not (self.layout.cell(task.name) / RESULT).is_file():
            result = asdict(task.cell) | {"failure": None, "error": _ended(worker), "scores": None}
            write_whole(self.layout.cell(task.name) / RESULT, json.dumps(result) + "\n")

    def _tell(self, ended: Task | None) -> None:
        results = self.layout.results()
        self.report(
            Progress(
                # a cell of a rate that is no longer chosen does not count
                done=sum(c.name in results for pair in self.pairs for c in next_cells(self.plan, pair, results)[0]),
                total=sum(count_cells(self.plan, pair, results) for pair in self.pairs),
                ended=ended,
                well=ended is None or self._ended_well(ended, results),
                result=None if ended is None else results.get(ended.name),
                running=[worker.task.words for worker in self.workers],
                seconds_left=self._seconds_left(results),
                told={w.task.words: told for w in self.workers if (told := self.layout.told(w.task.name)) is not None},
            )
        )

    def _ended_well(self, task: Task, results: Mapping[str, Any]) -> bool:
        if task.cell is None:
            return self.layout.is_ready(task.name)
        return not results.get(task.name, {"error": True}).get("error")

    def _seconds_left(self, results: Mapping[str, Any]) -> float | None:
        pace = Pace(self.plan, results)
        left = pace.of_missing(self.pairs)
        if left is None:
            return self._seconds_by_shares(results)
        running = [self._forecast(worker, pace) for worker in self.workers if worker.task.name not in results]
        spent = sum(min(elapsed, whole) for elapsed, whole in running)
        last = max((whole - elapsed for elapsed, whole in running), default=0.0)  # a cell is not shared out
        return max((left - spent) / self.jobs, last, 0.0)

    def _seconds_by_shares(self, results: Mapping[str, Any]) -> float | None:
        """Before a first cell has ended: by what the cells under way say, where no other is to come."""
        missing = [cell.name for pair in self.pairs for cell in next_cells(self.plan, pair, results)[0]]
        if {name for name in missing if name not in results} != {worker.task.name for worker in self.workers}:
            return None
        left = []
        for worker in self.workers:
            told = self.layout.told(worker.task.name)
            if told is None or not told.share or told.share < LEAST_SHARE:
                return None
            left.append((time.monotonic() - worker.started) * (1 / told.share - 1))
        return max(left, default=None)

    def _forecast(self, worker: Worker, pace: Pace) -> tuple[float, float]:
        """Seconds that a worker has been at its cell, and those of the whole cell; one that is late uses no other's."""
        whole = None if worker.task.cell is None else pace.seconds_of(worker.task.cell)
        return time.monotonic() - worker.started, whole or 0.0


def _ended(worker: Worker) -> str:
    code = worker.process.returncode
    return f"the process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'} before the work was done"
