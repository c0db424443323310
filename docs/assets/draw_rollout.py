"""Draw a logged rollout as an SVG: each token in the colour of its region, its r below.

tropd train --config recipes/demo.yaml --output_dir runs/picture
python docs/assets/draw_rollout.py runs/picture/rollouts/step-000041.jsonl --row 0 --out docs/assets/rollout.svg
"""

import argparse
import json
from html import escape
from pathlib import Path
from textwrap import wrap

COLOURS = {"guidance": ("#dbeafe", "#1d4ed8"), "trust": ("#dcfce7", "#166534"), "outlier": ("#fecaca", "#991b1b")}
LEARNED = {
    "guidance": ("teacher prefix", "β · negative log-likelihood"),
    "trust": ("trusted", "K1 policy gradient"),
    "outlier": ("outlier", "top-k forward KL (r below, nats)"),
}
WIDTH, LINE, LEFT, TOP, GLYPH = 960, 78, 24, 90, 9.6
INK = "#111827"
DEEPEST = 8.0
"""r of a bar of full height, nats."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", type=Path, help="a file of rollouts/")
    parser.add_argument("--row", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    records = [json.loads(line) for line in options.rollouts.read_text(encoding="utf-8").splitlines()]
    record = next(record for record in records if record["row"] == options.row)
    options.out.write_text(draw(record), encoding="utf-8")


def draw(record: dict) -> str:
    """The whole picture."""
    shapes, x, y = [], LEFT, TOP
    for line in wrap(record["prompt"].strip(), int((WIDTH - 2 * LEFT) / GLYPH)):
        shapes.append(_text(x, y + 17, line, "#374151", bold=True))
        y += 26
    y += 8
    for token in record["tokens"]:
        token["text"] = token["text"].replace("\n", "↵").strip()
        width = len(token["text"]) * GLYPH + 8
        if x + width > WIDTH - LEFT:
            x, y = LEFT, y + LINE
        shapes += _token(token, x, y, width)
        x += width + 3
    height = y + LINE + 8
    head = [
        _text(
            LEFT, 30, "The student writes, the teacher scores every token, each region learns in its own way", "#111827"
        ),
        *_legend(),
    ]
    body = "\n".join([*head, *shapes])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="16">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _legend() -> list[str]:
    shapes, x = [], LEFT
    for region, (name, how) in LEARNED.items():
        fill, ink = COLOURS[region]
        shapes.append(f'<rect x="{x}" y="48" width="14" height="14" rx="3" fill="{fill}" stroke="{ink}"/>')
        shapes.append(_text(x + 20, 60, f"{name}: {how}", ink, size=12))
        x += 20 + (len(name) + len(how) + 4) * 7.4
    return shapes


def _token(token: dict, x: float, y: float, width: float) -> list[str]:
    """A box, and below it a bar whose depth is −r."""
    fill, ink = COLOURS[token["region"]]
    shapes = [f'<rect x="{x}" y="{y}" width="{width}" height="25" rx="4" fill="{fill}"/>']
    shapes.append(_text(x + 4, y + 17, token["text"], ink))
    depth = min(max(-(token["log_ratio"] or 0.0), 0.0), DEEPEST) / DEEPEST * 24
    if token["region"] != "guidance" and depth >= 1:
        shapes.append(f'<rect x="{x}" y="{y + 27}" width="{width}" height="{depth:.1f}" fill="{ink}" opacity="0.55"/>')
    if token["region"] == "outlier":
        shapes.append(_text(x - 3, y + 40 + depth, f"{token['log_ratio']:.1f}", ink, size=11))
    return shapes


def _text(x: float, y: float, text: str, colour: str, bold: bool = False, size: int = 16) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}"{weight}>{escape(text)}</text>'


if __name__ == "__main__":
    main()
