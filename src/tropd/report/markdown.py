"""Tables as Markdown, and shares in them."""

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; text stays inside its cell.

    >>> print(markdown_table(["a", "b"], [["1", "x|y"]]), end="")
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def percent(share: float | None) -> str:
    """A share in percent, with one digit; a dash if it is missing or not a number.

    >>> percent(0.125), percent(None), percent(float("nan"))
    ('12.5', '–', '–')
    """
    return "–" if share is None or share != share else f"{100 * share:.1f}"
