"""Run a recipe cell by cell, resumable at any cell, and write its tables."""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..training.run_directory import write_whole
from .plan import Cell, Recipe, choose_learning_rates, grid_cells, load_recipe, report_cells


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe)
        if not (options.teacher / "config.json").is_file():
            raise ValueError(f"--teacher is {options.teacher}, which is not a model folder (it has no config.json).")
        root = options.out.resolve()
        _check_same_comparison(recipe, root)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    splits, before = _prepare(recipe, options.teacher, root)
    results = _run(grid_cells(recipe), recipe, root, splits, options.jobs)
    chosen = choose_learning_rates(recipe, results)
    results |= _run(report_cells(recipe, chosen), recipe, root, splits, options.jobs)
    _publish(recipe, chosen, results, before, root)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tropd.comparison", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file, such as recipes/stories260k.yaml")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the teacher model")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for cells, runs and tables; resumed if it exists"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    return parser


def _prepare(recipe: Recipe, teacher: Path, root: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Student folder, prompts and the distances before training, made once and read back when resuming."""
    from .cell import load_pair, measure
    from .pair import build_student, write_texts

    if not (root / "prompts.json").exists():
        shutil.copytree(teacher, root / "teacher", dirs_exist_ok=True)
        build_student(root / "teacher", recipe.keep_layers, root / "student")
        texts = write_texts(root / "teacher", recipe)
        student, loaded_teacher = load_pair(root)
        before = {name: measure(student, loaded_teacher, texts[name], recipe) for name in ("validation", "test")}
        write_whole(root / "before.json", json.dumps(before) + "\n")
        splits = {name: [text.as_dict() for text in split] for name, split in texts.items()}
        write_whole(root / "prompts.json", json.dumps(splits) + "\n")
    return _read(root / "prompts.json"), _read(root / "before.json")


def _check_same_comparison(recipe: Recipe, root: Path) -> None:
    """Cells on disk belong to one recipe: methods, learning rates and seeds may be added, nothing else may change."""
    described = json.loads(json.dumps(asdict(recipe)))
    path = root / "recipe.json"
    if path.exists():
        earlier = _read(path)
        free = ("methods", "learning_rates", "seeds")
        changed = [key for key in described if key not in free and described[key] != earlier.get(key)]
        changed += [
            f"methods.{label}"
            for label, settings in earlier["methods"].items()
            if label in described["methods"] and described["methods"][label] != settings
        ]
        if changed:
            raise ValueError(
                f"{root} holds cells of another recipe: {', '.join(changed)} changed. Choose another --out."
            )
        described["methods"] = earlier["methods"] | described["methods"]
    write_whole(path, json.dumps(described) + "\n")


def _run(cells: list[Cell], recipe: Recipe, root: Path, splits: Any, jobs: int) -> dict[str, Any]:
    """Results of all cells; those already on disk are read, the others run on `jobs` processes."""
    missing = [cell for cell in cells if not (root / "cells" / f"{cell.name}.json").exists()]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} already done", flush=True)
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_end_with_parent, initargs=(os.getpid(),)) as pool:
        running = {pool.submit(_run_quietly, recipe, cell, str(root), splits): cell for cell in missing}
        for done, future in enumerate(as_completed(running), start=1):
            result = future.result()
            left = (time.monotonic() - started) / done * (len(missing) - done)
            end = result["failure"] or f"reverse KL {result['test']['student_states']['reverse_kl']:.3f}"
            print(f"[{done}/{len(missing)}] {running[future].name}: {end}; {left / 60:.0f} min left", flush=True)
    return {cell.name: _read(root / "cells" / f"{cell.name}.json") for cell in cells}


def _end_with_parent(parent: int) -> None:
    """End this worker when the process that started it is gone; a pool's workers would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_quietly(recipe: Recipe, cell: Cell, root: str, splits: Any) -> dict[str, Any]:
    """One cell in a worker process, its chatter in a file beside its run."""
    log = Path(root) / "logs" / f"{cell.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        from .cell import run_cell

        return run_cell(recipe, cell, root, splits)


def _publish(recipe: Recipe, chosen: dict[str, float], results: dict[str, Any], before: Any, root: Path) -> None:
    from .tables import plot_curves, results_markdown

    write_whole(root / "results.json", json.dumps({"chosen": chosen, "before": before, "cells": results}) + "\n")
    text = results_markdown(recipe, chosen, results, before)
    write_whole(root / "results.md", text)
    plot_curves(recipe, chosen, results, root / "curves.png")
    print(text)
    print(f"written: {root / 'results.md'}, results.json, curves.png")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
