"""Does the trust region pay at this distance? OPD, FKL Outlier and TrOPD from students at several trust fractions.

    python benchmarks/preflight_training.py --stories DIR --out DIR

DIR of `--stories` is the folder of the pretrained story model; each student is that model with noise on its weights or
without a layer. Every method takes its best learning rate by validation; the table goes to standard output. About 15
minutes on one CPU core, resumable. What it showed: docs/preflight.md.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from preflight_pairs import STORY_STUDENTS, write_story_student

from tropd.comparison.cell import run_cell
from tropd.comparison.pair import write_texts
from tropd.comparison.plan import Cell, Recipe, load_recipe

PAIRS = ("noise 0.1", "without layer 2", "noise 0.05")
METHODS = ("opd", "fkl_outlier", "tropd")
RATES = (3e-4, 1e-3)
SEEDS = (1, 2)
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "stories260k.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", required=True, help="folder of the story model")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--student-tokens", type=int, default=65_536, help="budget of a run (default 65536)")
    options = parser.parse_args()
    recipe = dataclasses.replace(load_recipe(RECIPE), student_tokens=options.student_tokens)
    texts = write_texts(options.stories, recipe)
    splits = {name: [text.as_dict() for text in split] for name, split in texts.items()}
    print("| student | method | learning rate | reverse KL | forward KL | total variation |")
    print("|---|---|---|---|---|---|")
    for pair in PAIRS:
        root = Path(options.out) / pair.replace(" ", "-")
        write_story_student(options.stories, STORY_STUDENTS["whole"], root / "teacher")
        write_story_student(options.stories, STORY_STUDENTS[pair], root / "student")
        for method in METHODS:
            print(_row(recipe, pair, method, _results(recipe, root, method, splits)), flush=True)


def _results(recipe: Recipe, root: Path, method: str, splits: dict) -> dict[float, list[dict]]:
    results: dict[float, list[dict]] = {}
    for rate in RATES:
        for seed in SEEDS:
            cell = Cell(method, rate, seed)
            path = root / "cells" / f"{cell.name}.json"
            if not path.is_file():
                with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its logs
                    run_cell(recipe, cell, str(root), splits)
            results.setdefault(rate, []).append(json.loads(path.read_text(encoding="utf-8")))
    return results


def _row(recipe: Recipe, pair: str, method: str, results: dict[float, list[dict]]) -> str:
    states, metric = recipe.select_on.split("/")

    def mean(rate: float, split: str, name: str) -> float:
        return sum(result[split][states][name] for result in results[rate]) / len(results[rate])

    best = min(results, key=lambda rate: mean(rate, "validation", metric))
    cells = []
    for name in ("reverse_kl", "forward_kl", "total_variation"):
        seeds = ", ".join(f"{result['test'][states][name]:.3f}" for result in results[best])
        cells.append(f"{mean(best, 'test', name):.3f} ({seeds})")
    return f"| {pair} | `{method}` | {best:g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
