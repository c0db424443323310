"""All results of a comparison as plain data: the content of results.json, from which tables and report are made."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ...evaluation.statistics import Interval, bootstrap_interval, estimate
from ..cells import REPORT, grid_cells, next_cells, score_of
from ..layout import Layout
from ..plan import DIVERGENCES, OF_EPISODES, STATES, TURNS, Plan, Setting
from ..plan_file import read_plan
from .logged_series import course_of

FORMAT = 1
VERDICTS = {"accuracy": "right", "sampled": "sampled"}
"""Scores with a verdict on each problem, and where a cell has those."""


def collect(layout: Layout) -> dict[str, Any]:
    """Every cell, failures included, and its summary by setting and method."""
    state = layout.read_state()
    cells = {name: _with_course(name, cell, layout) for name, cell in layout.results().items()}
    plan = read_plan(state["plan"])
    environments: list[Any] = []
    for cell in cells.values():
        if cell.get("environment") not in [None, *environments]:
            environments.append(cell["environment"])
    return {
        "format": FORMAT,
        "title": plan.title,
        "hardware": state.get("hardware"),
        "environments": environments,
        "plan": state["plan"],
        "settings": {name: _setting(plan, name, cells, layout) for name in plan.settings},
        "cells": cells,
    }


def _with_course(name: str, cell: dict[str, Any], layout: Layout) -> dict[str, Any]:
    course = course_of(layout.cell(name)) if cell["kind"] == REPORT else None
    return cell if course is None else cell | {"course": course}


def metrics_of(setting: Setting) -> list[str]:
    """The names of a setting's scores, the averages before their parts."""
    graded = ("accuracy", "ended", "length") if setting.is_graded else ("ended", "length")
    trust = [f"trust_{turn}" for turn in range(1, TURNS + 1)]
    of_episodes = (*OF_EPISODES, *trust) if setting.environment else ()
    return [
        column for name in (*graded, *of_episodes) for column in (name, *(f"{name}/{part}" for part in setting.parts))
    ] + [f"{states}/{name}" for states in STATES for name in DIVERGENCES]


def _setting(plan: Plan, name: str, cells: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    setting = plan.settings[name]
    error = layout.setting_error(name)
    methods = {label: _method(plan, name, label, cells) for label in plan.methods}
    return {
        "error": error.read_text(encoding="utf-8").strip() if error.is_file() and not layout.is_ready(name) else None,
        "parts": setting.parts,
        "graded": setting.is_graded,
        "before": layout.before(name),
        "methods": methods,
    }


def _method(plan: Plan, setting: str, label: str, cells: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a table: its rate and how it was chosen, its runs, their scores, and the differences."""
    mine, rate = _reported(plan, setting, label, cells)
    references = {cell["seed"]: cell for cell in _reported(plan, setting, plan.reference, cells)[0]}
    scored = [cell for cell in mine if cell["scores"]]
    grid = {cell.learning_rate: cells.get(cell.name) for cell in grid_cells(plan, setting, label)}
    scores = {tried: None if cell is None else score_of(cell, plan.select_on) for tried, cell in grid.items()}
    measured = [tried for tried, score in scores.items() if score is not None]
    return {
        "learning_rate": rate,
        "at_edge": bool(measured) and rate in (min(measured), max(measured)),
        "grid": {f"{tried:g}": score for tried, score in scores.items()},
        "planned": len(plan.seeds),
        "seeds": [cell["seed"] for cell in scored],
        "failures": sum(bool(cell.get("failure")) for cell in mine),
        "errors": sum(bool((cell or {}).get("error")) for cell in [*mine, *grid.values()]),
        **{
            name: fmean(cell[name] for cell in scored) if scored else None
            for name in ("steps", "student_tokens", "prefix_tokens", "train_seconds")
        },
        "metrics": {
            name: _estimate([cell["scores"][name] for cell in scored])
            for name in metrics_of(plan.settings[setting])
            if scored and all(name in cell["scores"] for cell in scored)
        },
        "differences": {}
        if label == plan.reference
        else _differences(scored, references, metrics_of(plan.settings[setting])),
    }


def _reported(plan: Plan, setting: str, label: str, cells: Mapping[str, Any]) -> tuple[list[Any], float | None]:
    """The cells of a row that have ended, in the order of the seeds, and its rate once it is chosen."""
    known, rate = next_cells(plan, (setting, label), cells)
    return [cells[cell.name] for cell in known if cell.kind == REPORT and cell.name in cells], rate


def _estimate(values: Sequence[float]) -> dict[str, Any]:
    found = estimate(values)
    error = None if math.isnan(found.standard_error) else found.standard_error
    return {"mean": found.mean, "standard_error": error, "n": found.n}


def _differences(
    scored: Sequence[Mapping[str, Any]], references: Mapping[int, Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Value − the reference's, seed by seed, over the seeds that both have."""
    matched = [
        (cell, references[cell["seed"]]) for cell in scored if (references.get(cell["seed"]) or {}).get("scores")
    ]
    found: dict[str, Any] = {}
    for name in metrics:
        if matched and all(name in ours["scores"] and name in theirs["scores"] for ours, theirs in matched):
            found[name] = _interval([_paired(name, ours, theirs) for ours, theirs in matched])
    return found


def _interval(by_seed: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of many problems a bootstrap over seeds and problems; of one number a seed, too few to draw from, Student's t.

    One seed says nothing about seeds: its interval is of problems alone, and excludes nothing.
    """
    if len(by_seed[0]) > 1:
        interval = bootstrap_interval(by_seed)
    else:
        found = estimate([value for (value,) in by_seed])
        interval = Interval(found.mean, found.mean - found.half_width, found.mean + found.half_width)
    bounds = {key: None if math.isnan(value) else value for key, value in asdict(interval).items()}
    return bounds | {"n": len(by_seed), "excludes_zero": len(by_seed) > 1 and interval.excludes_zero}


def _paired(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[float]:
    """The differences of one seed: of every problem where there is a verdict on each, else of the one number."""
    kind, _, part = name.partition("/")
    if kind in VERDICTS:
        mine, others = ours[VERDICTS[kind]], theirs[VERDICTS[kind]]
        pairs = [(mine[p], others[p]) for p in ([part] if part else mine)]
        return [float(int(a) - int(b)) for one, other in pairs for a, b in zip(one, other, strict=True)]
    return [ours["scores"][name] - theirs["scores"][name]]


def failed_cells(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(cell, what kind of ending, its words) of every cell that did not end well, those of the grid included."""
    kinds = (("failure", "ended early"), ("error", "failed"))
    return [
        (name, words, cell[kind]) for name, cell in results["cells"].items() for kind, words in kinds if cell.get(kind)
    ]


def taken_over(results: Mapping[str, Any]) -> str:
    """Which cells another comparison ran, in words; nothing where all are of this one."""
    sources = Counter(
        (source["file"], source["hardware"]) for cell in results["cells"].values() if (source := cell.get("taken_from"))
    )
    return "; ".join(
        f"{count} of {len(results['cells'])} from {file}" + (f" ({hardware})" if hardware else "")
        for (file, hardware), count in sources.items()
    )


def reported(results: Mapping[str, Any], setting: str) -> dict[str, list[dict[str, Any]]]:
    """For each method of a setting its reported cells that were measured, seed by seed, each with its `name`."""
    plan, cells = read_plan(results["plan"]), results["cells"]
    found: dict[str, list[dict[str, Any]]] = {}
    for label in plan.methods:
        known, _ = next_cells(plan, (setting, label), cells)
        mine = [cell.name for cell in known if cell.kind == REPORT and (cells.get(cell.name) or {}).get("scores")]
        found[label] = [{**cells[name], "name": name} for name in mine]
    return found
