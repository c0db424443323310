"""Draw what `suite.py` has measured.

python benchmarks/draw.py bench.json docs/assets/performance.svg
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

PEERS = {"products": "products alone", "fused": "tropd", "trl": "TRL", "naive": "all logits at once"}
WORK = {"reverse": "reverse KL", "k1": "K1", "tropd": "K1 and\ntop-64"}
STAGES = ("rollout", "student scoring", "teacher scoring", "update")


def draw_head(place: Any, rows: list[dict[str, Any]]) -> None:
    """Seconds of each peer over those of the products."""
    width = 0.8 / len(PEERS)
    for number, (peer, label) in enumerate(PEERS.items()):
        heights = [row["seconds"][peer] / row["seconds"]["products"] for row in rows]
        place.bar([n + number * width for n in range(len(rows))], heights, width, label=label)
    place.set_xticks([n + 0.4 - width / 2 for n in range(len(rows))], [WORK[row["setting"]["work"]] for row in rows])
    place.set(title="output layer", ylabel="time ÷ that of the matrix products")
    place.set_ylim(top=1.45 * place.get_ylim()[1])  # room for the legend
    place.legend(fontsize="small", frameon=False, ncols=2, loc="upper center")


def draw_rollouts(place: Any, seconds: dict[str, list[float]]) -> None:
    """Tokens per second over the host's."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ways = {"host": "TRL's way", "ours": "tropd"}
    place.bar(list(ways.values()), [medians["host"] / medians[way] for way in ways], 0.5, color=["C2", "C1"])
    place.set(title="rollouts", ylabel="tokens per second ÷ those of TRL's way")


def draw_step(place: Any, figures: dict[str, dict[str, float]]) -> None:
    """Where the time of a step goes, for each token that the student wrote."""
    below = dict.fromkeys(figures, 0.0)
    for stage in STAGES:
        heights = [figures[name][stage] / figures["trl"]["step"] for name in figures]
        if any(heights):
            place.bar(list(figures), heights, 0.6, bottom=list(below.values()), label=stage)
        below = {name: below[name] + height for name, height in zip(figures, heights, strict=True)}
    place.set(title="a whole step", ylabel="time for each token ÷ TRL's")
    place.legend(fontsize="small", frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="what suite.py wrote with --json")
    parser.add_argument("picture", type=Path, help="an SVG file")
    options = parser.parse_args()
    records = json.loads(options.record.read_text(encoding="utf-8"))["records"]
    figure, places = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    draw_head(places[0], records["head"]["rows"])
    draw_rollouts(places[1], records["rollouts"]["seconds"])
    draw_step(places[2], records["step"]["figures"])
    for place in places:
        place.spines[["top", "right"]].set_visible(False)
    matplotlib.rcParams["svg.hashsalt"] = "tropd"  # the same picture from the same figures
    figure.savefig(options.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
