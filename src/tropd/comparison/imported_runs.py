"""Runs imported from a published results.json instead of run again. No torch here.

Both comparisons must share the plan, except for permitted additions, and in every setting the models and prompts. These
are compared by the scores of the untrained models, since names say little.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic_files import write_whole
from .cells import GRID, REPORT, Cell, grid_cells
from .layout import RESULT, Layout
from .plan import Plan
from .plan_changes import changes
from .plan_file import as_now
from .report.results import FORMAT

ACCURACY_APART, DIVERGENCE_APART = 0.02, 0.02
"""Machines round differently, and a token that is drawn near a tie is another one: so far may accuracies before
training lie apart, and divergences by this part of their value. The proving ground's differed by 1e-7 of it on two
makes of processor."""


def take_over(file: Path, plan: Plan, layout: Layout) -> int:
    """Put the cells of `file` that the plan asks for into the comparison, and say how many.

    Cells that are there already stay, and cells that ended in an error are left out.
    """
    theirs = _read(file)
    changed = changes(_nameless(as_now(theirs["plan"])), _nameless(json.loads(json.dumps(plan.as_dict()))))
    if changed:
        raise ValueError(
            f"--from is {str(file)!r}, whose runs belong to a different plan: {', '.join(changed)}. Make the plans "
            "equal, or remove --from."
        )
    wanted = {name: cell for name, cell in theirs["cells"].items() if _is_wanted(name, cell, plan)}
    for setting in dict.fromkeys(cell["setting"] for cell in wanted.values()):
        # Scores before training are held against those of this comparison, now or when the setting is prepared.
        before, here = theirs["settings"][setting]["before"], layout.before(setting)
        if here is not None:
            _check_same(file.name, setting, before, here)
        else:
            layout.write_taken(setting, {"file": file.name, "before": before})
    missing = wanted.keys() - layout.results().keys()
    source = {"taken_from": {"file": file.name, "hardware": theirs.get("hardware")}}
    for name in sorted(missing):  # what was taken over before keeps its first source
        write_whole(layout.cell(name) / RESULT, json.dumps(source | wanted[name]) + "\n")
    return len(missing)


def check_before(layout: Layout, setting: str, before: Mapping[str, Any]) -> None:
    """Are the models and prompts that were prepared here those of the runs that were taken over?"""
    taken = layout.taken(setting)
    if taken is not None:
        _check_same(taken["file"], setting, taken["before"], before)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"--from is {str(file)!r}, but there is no such file.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--from is {str(file)!r}, which is not JSON: {error}.") from error
    if not isinstance(found, dict) or not {"plan", "settings", "cells"} <= found.keys():
        raise ValueError(f"--from is {str(file)!r}, which is not the results.json of a comparison.")
    if found.get("format") != FORMAT:
        raise ValueError(f"--from is {str(file)!r} of format {found.get('format')}; this tropd reads {FORMAT}.")
    return found


def _nameless(plan: dict[str, Any]) -> dict[str, Any]:
    """Without the folders of models, which lie elsewhere on another machine: scores tell models apart."""
    settings = {
        name: setting
        | {"teacher": "", "teachers": sorted(setting["teachers"])}
        | ({"student": ""} if isinstance(setting["student"], str) else {})
        for name, setting in plan["settings"].items()
    }
    return plan | {"settings": settings}


def _is_wanted(name: str, found: Mapping[str, Any], plan: Plan) -> bool:
    cell = Cell(**{field: found[field] for field in Cell.__dataclass_fields__})
    if cell.name != name or cell.kind not in (GRID, REPORT):  # a name becomes a folder
        return False
    if found.get("error") or cell.setting not in plan.settings or cell.label not in plan.methods:
        return False
    if cell.kind == GRID:
        return cell in grid_cells(plan, cell.setting, cell.label)
    return cell.seed in plan.seeds and cell.learning_rate in (
        plan.fixed_rate(cell.setting, cell.label),
        *plan.learning_rates,
    )


def _check_same(file: str, setting: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for model in ("teacher", "student"):
        for name, there in theirs[model].items():
            here = ours[model].get(name, math.nan)
            if not _is_near(name, there, here):
                raise ValueError(
                    f"the runs that --from imports from {file} used different models or prompts in {setting}: before "
                    f"training the {model}'s {name} was {there:.4g} there and is {here:.4g} here. Choose another "
                    "--out, and remove --from or use the models and prompts of those runs."
                )


def _is_near(name: str, one: float, other: float) -> bool:
    if name.startswith(("accuracy", "ended")):
        return abs(one - other) <= ACCURACY_APART
    return math.isclose(one, other, rel_tol=DIVERGENCE_APART, abs_tol=1e-4)
