"""Charts as inline SVG: lines with bands over steps, and differences with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .axes import Axis, axis
from .palette import look
from .rendering import draw

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 34
MARKERS_A_LINE = 5
ROW = 26


@dataclass(frozen=True)
class Line:
    """A method over its steps: means over seeds in a band; `number` decides its look, the same in all charts of a
    page."""

    label: str
    number: int
    xs: Sequence[float]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def line_chart(
    title: str, lines: Sequence[Line], *, log: bool = False, zero: bool = False, x_label: str = "step"
) -> str:
    """Lines with bands; on a logarithmic axis what is not above 0 is left out. Without any point a sentence says so."""
    shown = [kept for line in lines if (kept := _positive(line) if log else line).xs]
    if not shown:
        return draw("nothing", title=title, what="nothing was logged")
    xs = axis([x for line in shown for x in line.xs], LEFT, WIDTH - RIGHT)
    xs = Axis(min(0.0, xs.low) if xs.low < 0 else 0.0, xs.high, xs.start, xs.stop)
    values = [v for line in shown for v in (*line.lows, *line.highs)]
    ys = axis(values, HEIGHT - BOTTOM, TOP, log=log, zero=zero)
    drawn = [_drawn(line, xs, ys) for line in shown]
    box = {"title": title, "width": WIDTH, "height": HEIGHT}
    return draw("line_chart", **box, xs=xs, ys=ys, ticks=_few(xs), x_label=x_label, lines=drawn)


def interval_chart(title: str, rows: Sequence[tuple[str, int, float, float | None, float | None]]) -> str:
    """Differences with their intervals and a line at zero.

    A row has a label, the number of its look, mean, low and high; an interval may be absent.
    """
    if not rows:
        return draw("nothing", title=title, what="there is nothing to compare")
    left = LEFT + 8 + 6.4 * max(len(row[0]) for row in rows)
    left = min(left, WIDTH / 2)
    height = ROW * len(rows) + BOTTOM + TOP
    values = [value for _, _, mean, low, high in rows for value in (mean, low, high) if value is not None]
    xs = axis(values, left, WIDTH - RIGHT, zero=True)
    room = 0.05 * (xs.high - xs.low)
    xs = Axis(min(xs.low, -room), max(xs.high, room), xs.start, xs.stop)
    placed = [
        (label, look(number), TOP + ROW * (n + 0.5), *interval) for n, (label, number, *interval) in enumerate(rows)
    ]
    box = {"title": title, "width": WIDTH, "height": height, "top": TOP, "bottom": height - BOTTOM}
    return draw("interval_chart", **box, xs=xs, ticks=_few(xs), rows=placed)


def legend(labels: Sequence[tuple[str, int]]) -> str:
    """What the lines of a page look like."""
    return draw("legend", labels=[(name, look(number)) for name, number in labels])


def _positive(line: Line) -> Line:
    kept = [n for n, low in enumerate(line.lows) if low > 0]
    return Line(
        line.label,
        line.number,
        *([column[n] for n in kept] for column in (line.xs, line.means, line.lows, line.highs)),
    )


def _drawn(line: Line, xs: Axis, ys: Axis) -> dict[str, Any]:
    """A line's look and pixels; lines on top of each other are distinguished by markers at different places."""
    upper, lower, curve = (
        [(xs(x), ys(y)) for x, y in zip(line.xs, values, strict=True)] for values in (line.highs, line.lows, line.means)
    )
    every = max(len(curve) // MARKERS_A_LINE, 1)
    marked = curve[2 * line.number % every :: every]
    return {
        "label": line.label,
        "look": look(line.number),
        "band": upper + lower[::-1],
        "curve": curve,
        "marked": marked,
    }


def _few(xs: Axis) -> list[float]:
    """Ticks that have room: one for 45 pixels."""
    ticks, room = xs.ticks(), max(int(abs(xs.stop - xs.start) // 45), 2)
    every = -(-len(ticks) // room)
    if 0.0 in ticks:
        return ticks[ticks.index(0.0) % every :: every]
    return ticks[::every]
