"""Charts as inline SVG: lines with bands over steps, and differences with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape_html

from ..visible import visible
from .axes import Axis, axis, label
from .palette import look, marker

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 34
MARKERS_A_LINE = 5
ROW = 26


@dataclass(frozen=True)
class Line:
    """A method over its steps.

    Attributes:
        label: whose line it is.
        number: decides its look, the same in all charts of a page.
        xs: steps.
        means: over seeds.
        lows: lower edge of the band.
        highs: upper edge.
    """

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
        return f'<p class="nothing">{escape(title)}: nothing was logged.</p>'
    xs = axis([x for line in shown for x in line.xs], LEFT, WIDTH - RIGHT)
    xs = Axis(min(0.0, xs.low) if xs.low < 0 else 0.0, xs.high, xs.start, xs.stop)
    values = [v for line in shown for v in (*line.lows, *line.highs)]
    ys = axis(values, HEIGHT - BOTTOM, TOP, log=log, zero=zero)
    body = _grid(xs, ys, x_label) + "".join(_line(line, xs, ys) for line in shown)
    return _svg(HEIGHT, title, body)


def interval_chart(title: str, rows: Sequence[tuple[str, int, float, float | None, float | None]]) -> str:
    """Differences, one a row, with their intervals and a line at zero.

    Args:
        title: what differs.
        rows: label, number of its look, mean, low, high; an interval may be absent.
    """
    if not rows:
        return f'<p class="nothing">{escape(title)}: there is nothing to compare.</p>'
    left = LEFT + 8 + 6.4 * max(len(row[0]) for row in rows)
    left = min(left, WIDTH / 2)
    height = ROW * len(rows) + BOTTOM + TOP
    values = [value for _, _, mean, low, high in rows for value in (mean, low, high) if value is not None]
    xs = axis(values, left, WIDTH - RIGHT, zero=True)
    room = 0.05 * (xs.high - xs.low)
    xs = Axis(min(xs.low, -room), max(xs.high, room), xs.start, xs.stop)
    ticks = "".join(
        f'<line class="grid" x1="{xs(t):.1f}" x2="{xs(t):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text x="{xs(t):.1f}" y="{height - BOTTOM + 14}" text-anchor="middle">{label(t)}</text>'
        for t in _few(xs)
    )
    zero = f'<line class="zero" x1="{xs(0):.1f}" x2="{xs(0):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
    marks = "".join(_interval(row, TOP + ROW * (n + 0.5), xs, left) for n, row in enumerate(rows))
    return _svg(height, title, ticks + zero + marks)


def legend(labels: Sequence[tuple[str, int]]) -> str:
    """What the lines of a page look like."""
    items = []
    for name, number in labels:
        style = look(number)
        sample = (
            f'<svg class="key" viewBox="0 0 40 12" aria-hidden="true"><line x1="1" x2="39" y1="6" y2="6" '
            f'stroke="{style.colour}" stroke-width="2" stroke-dasharray="{style.dashes}"/>'
            f"{marker(style.marker, 20, 6, style.colour)}</svg>"
        )
        items.append(f"<li>{sample}{escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def escape(text: str) -> str:
    """Text of others as a part of the page."""
    return escape_html(visible(text))


def _positive(line: Line) -> Line:
    kept = [n for n, low in enumerate(line.lows) if low > 0]
    return Line(
        line.label,
        line.number,
        *([column[n] for n in kept] for column in (line.xs, line.means, line.lows, line.highs)),
    )


def _line(line: Line, xs: Axis, ys: Axis) -> str:
    style = look(line.number)
    upper = [(xs(x), ys(y)) for x, y in zip(line.xs, line.highs, strict=True)]
    lower = [(xs(x), ys(y)) for x, y in zip(line.xs, line.lows, strict=True)]
    middle = [(xs(x), ys(y)) for x, y in zip(line.xs, line.means, strict=True)]
    band = f'<polygon points="{_points(upper + lower[::-1])}" fill="{style.colour}" opacity="0.13"/>'
    curve = (
        f'<polyline points="{_points(middle)}" fill="none" stroke="{style.colour}" stroke-width="1.7" '
        f'stroke-dasharray="{style.dashes}"/>'
    )
    # Lines that lie on each other are told apart by markers at different places.
    every = max(len(middle) // MARKERS_A_LINE, 1)
    marks = "".join(
        marker(style.marker, *middle[n], style.colour) for n in range(2 * line.number % every, len(middle), every)
    )
    return f"<g><title>{escape(line.label)}</title>{band}{curve}{marks}</g>"


def _grid(xs: Axis, ys: Axis, x_label: str) -> str:
    parts = []
    for tick in ys.ticks():
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{ys(tick):.1f}" y2="{ys(tick):.1f}"/>'
            f'<text x="{LEFT - 5}" y="{ys(tick) + 3.5:.1f}" text-anchor="end">{label(tick)}</text>'
        )
    bottom = HEIGHT - BOTTOM
    for tick in _few(xs):
        parts.append(f'<text x="{xs(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{label(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


def _few(xs: Axis) -> list[float]:
    """Ticks that have room: one for 45 pixels."""
    ticks, room = xs.ticks(), max(int(abs(xs.stop - xs.start) // 45), 2)
    every = -(-len(ticks) // room)
    if 0.0 in ticks:
        return ticks[ticks.index(0.0) % every :: every]
    return ticks[::every]


def _interval(row: tuple[str, int, float, float | None, float | None], y: float, xs: Axis, left: float) -> str:
    name, number, mean, low, high = row
    style = look(number)
    text = f'<text x="{left - 8:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{escape(name)}</text>'
    whisker = ""
    if low is not None and high is not None:
        a, b = xs(low), xs(high)
        whisker = (
            f'<path d="M{a:.1f} {y:.1f}H{b:.1f}M{a:.1f} {y - 4:.1f}V{y + 4:.1f}M{b:.1f} {y - 4:.1f}V{y + 4:.1f}" '
            f'stroke="{style.colour}" stroke-width="1.7" fill="none"/>'
        )
    return text + whisker + marker(style.marker, xs(mean), y, style.colour, 4.5)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(height: float, title: str, body: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg class="chart" viewBox="0 0 {WIDTH} {height:g}" '
        f'role="img" aria-label="{escape(title)}">{body}</svg></figure>'
    )
