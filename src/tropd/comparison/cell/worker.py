"""`python -m tropd.comparison.cell.worker ROOT TASK.json`: prepare a setting or run a cell in a process of its own.

What a task makes is made in a folder of its own under `running/` and moved to its place when it is whole.
"""

import json
import os
import shutil
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from ...atomic_files import write_whole
from ..cells import Cell
from ..imported_runs import check_before
from ..layout import RESULT, Layout
from ..plan import Plan
from ..plan_file import read_plan


def main(arguments: list[str]) -> int:
    """Entry point; a task that fails is written down like one that ends well, and its traceback is in its log."""
    layout, task = Layout(Path(arguments[0])), json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    _end_with(task["parent"])
    plan = read_plan(layout.read_state()["plan"])
    try:
        if "prepare" in task:
            _prepare(plan, task["prepare"], layout)
        else:
            _run(plan, Cell(**task["cell"]), layout)
    except Exception as error:
        traceback.print_exc()
        _write_error(layout, task, f"{type(error).__name__}: {error}")
    return 0


def _prepare(plan: Plan, name: str, layout: Layout) -> None:
    from .prepare import prepare

    prepare(plan, name, layout.running(name), partial(layout.tell, name))
    _place(layout, name)


def _place(layout: Layout, name: str) -> None:
    """A prepared setting comes to its place, unless cells were taken over that do not fit it."""
    made = layout.running(name)
    check_before(layout, name, json.loads((made / "before.json").read_text(encoding="utf-8")))
    _move(made, layout.setting(name))


def _run(plan: Plan, cell: Cell, layout: Layout) -> None:
    import torch

    from .environment import environment
    from .run_cell import run_cell

    torch.set_num_threads(1)
    folder = layout.running(cell.name)
    where = {"environment": environment()}  # the code that runs, whatever is committed meanwhile
    result = run_cell(plan, cell, layout.setting(cell.setting), folder, partial(layout.tell, cell.name)) | where
    if result["failure"]:  # it names the folder, which moves
        result["failure"] = result["failure"].replace(str(folder), str(layout.cell(cell.name).relative_to(layout.root)))
    write_whole(folder / RESULT, json.dumps(result) + "\n")
    _move(folder, layout.cell(cell.name))


def _write_error(layout: Layout, task: dict[str, Any], error: str) -> None:
    if "prepare" in task:
        write_whole(layout.setting_error(task["prepare"]), error + "\n")
        return
    cell = Cell(**task["cell"])
    folder = layout.running(cell.name)
    write_whole(folder / RESULT, json.dumps({**task["cell"], "failure": None, "error": error, "scores": None}) + "\n")
    _move(folder, layout.cell(cell.name))


def _move(made: Path, place: Path) -> None:
    """One rename: the place holds everything, or nothing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(made, place)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
