"""How lines are distinguished: by colour, dashes and the shape of their markers, never by colour alone."""

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
