"""How lines are told apart: by colour, by dashes and by the shape of their markers, so that colour is never alone."""

from dataclasses import dataclass

COLOURS = (
    "#0072b2", "#c44e00", "#00805c", "#a8327d", "#8a6d00", "#3a9bd9", "#222222", "#7a7a7a",
    "#6a4fc9", "#5b8c00", "#b3001e", "#7b4a2d",
)  # fmt: skip
"""After Okabe and Ito, darkened until each is readable on white."""

DASHES = ("", "7 3", "2 2.5", "9 3 2 3")
MARKERS = ("circle", "square", "triangle", "diamond", "cross")


@dataclass(frozen=True)
class Look:
    """Colour, dashes and marker of a line."""

    colour: str
    dashes: str
    marker: str


def look(number: int) -> Look:
    """The look of the line with this number; of the first 32, two of one colour have other dashes and markers."""
    dashes = DASHES[(number + number // len(COLOURS)) % len(DASHES)]
    return Look(COLOURS[number % len(COLOURS)], dashes, MARKERS[number % len(MARKERS)])


def marker(shape: str, x: float, y: float, colour: str, size: float = 3.6) -> str:
    """An SVG marker at a point."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{colour}"/>'
    if shape == "square":
        side = f"{2 * size:.1f}"
        return f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{side}" height="{side}" fill="{colour}"/>'
    corners = {
        "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }
    if shape in corners:
        points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in corners[shape])
        return f'<polygon points="{points}" fill="{colour}"/>'
    left, right, top, bottom = f"{x - size:.1f}", f"{x + size:.1f}", f"{y - size:.1f}", f"{y + size:.1f}"
    arms = f"M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}"
    return f'<path d="{arms}" stroke="{colour}" stroke-width="2" fill="none"/>'
