"""A plan as plain lines for people."""

import re
import textwrap

from .memory import human_bytes
from .run_plan import RunPlan
from .shape import ModelShape
from .stages import Stage
from .time import StepTime

WIDTH = 100


def render(plan: RunPlan, available: int | None = None, time: StepTime | None = None) -> list[str]:
    """Lines of at most `WIDTH` columns."""
    setup, work = plan.setup, plan.setup.work
    lines = [
        _model("student", setup.student, setup.weight_bytes),
        _model("teacher", setup.teacher, setup.teacher_bytes),
        *(_model("teacher", held.shape, held.weight_bytes) for held in setup.beside),
        f"step     {work.update_rows * setup.num_processes} rows, up to {work.longest_prompt} + "
        f"{work.longest_response} tokens; {work.decoded_rows} rows generated at once on a process",
    ]
    lines += ["", "memory of one process (estimated)"]
    lines += [line for stage in plan.memory.stages for line in _stage(stage)]
    lines += _wrapped(
        f"largest: {plan.memory.peak.name}, {human_bytes(plan.memory.total)}; in the first step "
        f"{plan.memory.first_peak.name}, {human_bytes(plan.memory.first_peak.total)}"
    )
    if available is not None:
        lines += _wrapped(plan.memory.fits(available).sentence)
    lines += ["", *_disk(plan)]
    if time is not None:
        lines += ["", *time_lines(plan, time)]
    lines += [line for note in setup.notes for line in _wrapped(f"note: {note}")]
    return lines


def human_seconds(seconds: float) -> str:
    """Seconds as a person says them.

    >>> [human_seconds(s) for s in (0.25, 42, 200, 5000, 200000)]
    ['0.2 s', '42 s', '3 min 20 s', '1 h 23 min', '55 h 33 min']
    """
    if seconds < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _model(role: str, shape: ModelShape, size: int) -> str:
    if shape.is_elsewhere:
        return f"{role}  {shape.name}, behind a server"
    tied = ", tied" if shape.tied else ""
    text = f"{role}  {shape.parameters / 1e6:,.1f}M parameters at {size} bytes, vocabulary {shape.vocab_size:,}{tied}"
    room = WIDTH - len(text) - 3
    name = shape.name if len(shape.name) <= room else "…" + shape.name[len(shape.name) - room + 1 :]
    return f"{text} ({name})"


def _stage(stage: Stage) -> list[str]:
    """The stage's total and its parts, largest first."""
    parts = sorted(stage.parts.items(), key=lambda item: -item[1])
    text = ", ".join(f"{name} {human_bytes(size)}" for name, size in parts)
    start = f"  {stage.name:<16} {human_bytes(stage.total):>8}  "
    return _wrapped(start + text, indent=len(start))


def _disk(plan: RunPlan) -> list[str]:
    disk = plan.disk
    return _wrapped(
        f"disk: {human_bytes(disk.total)} ({disk.num_checkpoints} checkpoints of {human_bytes(disk.checkpoint)}, "
        f"final model {human_bytes(disk.final_model)}, logged rollouts {human_bytes(disk.logs)})"
    )


def time_lines(plan: RunPlan, time: StepTime) -> list[str]:
    """Seconds of a step and of the run."""
    how = "a guess from peak numbers and assumed utilisations" if time.assumed else "from measured rates"
    parts = ", ".join(f"{name} {human_seconds(seconds)}" for name, seconds in time.parts.items())
    return _wrapped(
        f"time ({how}): {human_seconds(time.total)} a step ({parts}), {time.tokens_per_second:,.0f} response tokens "
        f"per second; {plan.max_steps} steps take {human_seconds(time.run_seconds(plan.max_steps))}"
    )


def _wrapped(text: str, indent: int = 2) -> list[str]:
    """Lines of at most `WIDTH` columns; a number stays with its unit."""
    glued = re.sub(r"(\d) (GB|MB|kB|s|min|h)\b", "\\1\N{NO-BREAK SPACE}\\2", text)
    return [
        line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(glued, WIDTH, subsequent_indent=" " * indent)
    ]
