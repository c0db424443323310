"""What a person sees: status lines, progress with the time left, tables and headings.

On a terminal there are colours and a moving bar; elsewhere (a log file, CI) plain lines, few enough to read. Results go
to standard output, everything else to standard error, so that a command can be piped.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from ..visible import visible

PLAIN_LINES = 10
"""A long work without a terminal is reported this many times, and at least every `PLAIN_SECONDS`."""

PLAIN_SECONDS = 60.0


class Screen(Console):
    """A console on which nothing that is printed can do more than be read."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_harmless, objects), **options)


def _harmless(thing: Any) -> Any:
    if isinstance(thing, str):
        return visible(thing)
    if isinstance(thing, Text) and visible(thing.plain) != thing.plain:  # one for one, so that colours stay in place
        thing = thing.copy()
        thing.plain = "".join(one if visible(one) == one else "\N{REPLACEMENT CHARACTER}" for one in thing.plain)
    return thing


@cache
def out() -> Console:
    """Standard output, for results; silent on every process of a run but the first."""
    return Screen(soft_wrap=True, highlight=False, quiet=not _is_first_process())


@cache
def err() -> Console:
    """Standard error, for status and warnings; silent on every process of a run but the first."""
    return Screen(stderr=True, soft_wrap=True, highlight=False, quiet=not _is_first_process())


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    err().print(escape(text))


def show(*lines: str) -> None:
    """Lines of a result, as they stand."""
    for line in lines:
        out().print(line, markup=False)


def warn(text: str) -> None:
    """A warning: something to know before going on."""
    err().print(f"[yellow]warning:[/yellow] {escape(text)}")


def fail(text: str) -> None:
    """A mistake, in the words of its exception; with the process's number where there are several."""
    rank = os.environ.get("RANK", "0")
    text = text if rank == "0" else f"(process {rank}) {text}"
    Screen(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/bold red] {escape(text)}")


class Advance(Protocol):
    """Tells a progress that `count` more units are done; `note` is shown beside it.

    `left` is the seconds left, where the caller knows better than by the units.
    """

    def __call__(self, count: int = 1, note: str = "", left: float | None = None) -> None: ...


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Report a long work: a bar with the time left on a terminal, else a line now and then."""
    if err().is_terminal:
        with _bar(title, total, unit, done) as advance:
            yield advance
    else:
        yield _Lines(title, total, unit, done, print_line=say)


@contextmanager
def _bar(title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich import progress as of_rich

    class Left(of_rich.TimeRemainingColumn):
        """The caller's own forecast, where it has one."""

        def render(self, task: Any) -> Text:
            known = task.fields.get("left")
            return super().render(task) if known is None else Text(duration(known), style="progress.remaining")

    columns = (
        of_rich.TextColumn("{task.description}"),
        of_rich.BarColumn(),
        of_rich.MofNCompleteColumn(),
        of_rich.TextColumn("{task.fields[unit]}  {task.fields[note]}"),
        of_rich.TimeElapsedColumn(),
        of_rich.TextColumn("left"),
        Left(),
    )
    with of_rich.Progress(*columns, console=err()) as bar:
        task = bar.add_task(title, total=total, completed=done, unit=unit, note="", left=None)

        def advance(count: int = 1, note: str = "", left: float | None = None) -> None:
            bar.update(task, advance=count, note=escape(visible(note)), left=left)

        yield advance


class _Lines:
    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        done: int,
        print_line: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.title, self.total, self.unit, self.print_line, self.clock = title, total, unit, print_line, clock
        self.first = self.done = self.reported = done
        self.started = self.last_line = clock()

    def __call__(self, count: int = 1, note: str = "", left: float | None = None) -> None:
        self.done += count
        now = self.clock()
        due = self.done - self.reported >= self.total / PLAIN_LINES or now - self.last_line >= PLAIN_SECONDS
        if not due and self.done < self.total and self.done - count > self.first:
            return
        if left is None:
            left = (now - self.started) / (self.done - self.first) * (self.total - self.done)
        beside = f"  {note}" if note else ""
        self.print_line(f"{self.title}: {self.done}/{self.total} {self.unit}{beside}  {duration(left)} left")
        self.reported, self.last_line = self.done, now


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> [duration(s) for s in (0.4, 42, 200, 5000, 200000)]
    ['0 s', '42 s', '3 min 20 s', '1 h 23 min', '2 d 7 h']
    """
    whole = round(seconds)
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {name}" + (f" {rest} {part_name}" if rest else "")
    return f"{whole} s"
