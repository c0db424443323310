"""A comparison from its plan to its report, resumable at any cell."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..models.folder import check_model_folder
from .cells import pairs
from .imported_runs import take_over
from .layout import Layout
from .plan import Plan, model_folder
from .plan_changes import MAY_GROW, changes, differences
from .plan_file import as_now, check_trainer_fields, read_plan
from .schedule import Progress, Schedule


def compare(
    plan: Plan,
    out: Path,
    *,
    jobs: int,
    only: Sequence[str] = (),
    retry_failed: bool = False,
    sources: Sequence[Path] = (),
    hardware: str | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Run what is missing and write results.json, tables.md and report.html; the results as plain data."""
    asked = pairs(plan, only)
    check_trainer_fields(plan)
    check_models(plan)
    layout = Layout(out.resolve())
    with layout.locked() as lock:
        record_plan(plan, layout, hardware)
        if retry_failed:
            _forget_errors(layout, asked)
        for source in sources:
            take_over(source, plan, layout)
        try:
            Schedule(plan, layout, jobs, only, lock, report).run()
        finally:
            results = publish(layout)
    return results


def report_only(plan: Plan, out: Path, sources: Sequence[Path] = (), hardware: str | None = None) -> dict[str, Any]:
    """Write the three files from what is in `out`, also while it runs, and in `sources`; nothing is trained."""
    layout = Layout(out.resolve())
    if not sources and not layout.has_state():
        raise ValueError(f"--out is {str(out)!r}, which holds no comparison yet. Remove --report-only.")
    if not sources:
        record_plan(plan, layout, hardware)
        return publish(layout)
    with layout.locked():
        record_plan(plan, layout, hardware)
        for source in sources:
            take_over(source, plan, layout)
        return publish(layout)


def publish(layout: Layout) -> dict[str, Any]:
    """Write results.json, tables.md and report.html from the cells that are there."""
    from ..atomic_files import write_whole
    from .report.comparison_page import report_page
    from .report.results import collect
    from .report.tables import tables_markdown

    results = collect(layout)
    write_whole(layout.root / "results.json", _as_json(results))
    write_whole(layout.root / "tables.md", tables_markdown(results))
    write_whole(layout.root / "report.html", report_page(results, layout))
    return results


def _as_json(results: dict[str, Any]) -> str:
    """Indented, with every list of numbers or words on one line."""
    text = json.dumps(results, indent=1) + "\n"
    return re.sub(r"\[\n([^\[\]{}]*)\n *\]", lambda found: f"[{' '.join(map(str.strip, found[1].splitlines()))}]", text)


def check_models(plan: Plan) -> None:
    """Refuse a plan with a missing model before anything starts."""
    for name, setting in plan.settings.items():
        models = {("teacher", setting.teacher_of(part)) for part in setting.parts}
        models |= {("student", setting.student)} if isinstance(setting.student, str) else set()
        for role, model in sorted(models):
            try:
                check_model_folder(model_folder(model), role)
            except ValueError as error:
                raise ValueError(f"settings.{name}: {error}") from error


def record_plan(plan: Plan, layout: Layout, hardware: str | None) -> None:
    """Cells on disk belong to one plan. Settings, methods, rates and seeds may be added; nothing else may change.

    Where nothing was prepared, run or taken over yet, the plan may be any other.
    """
    described, own = json.loads(json.dumps([plan.as_dict(), plan.own_methods()]))
    if layout.has_state() and not layout.is_empty():
        state = layout.read_state()
        changed = changes(as_now(state["plan"]), described)
        began = state.get("own_methods", {})
        for label in sorted(began.keys() & own.keys()):
            changed += differences(f"methods.{label}", began[label], own[label])
        own = began | own
        if changed:
            raise ValueError(
                f"{layout.root} holds cells of a different plan: {', '.join(changed)}. Choose another --out, or "
                "undo the change."
            )
        for field in MAY_GROW:  # what a shorter plan leaves out stays in the results
            described[field] = state["plan"][field] | described[field]
        read_plan(described)  # what each of two plans may ask for, both together may not
        hardware = hardware or state.get("hardware")
    layout.write_state({"plan": described, "hardware": hardware} | ({"own_methods": own} if own else {}))


def _forget_errors(layout: Layout, asked: Sequence[tuple[str, str]]) -> None:
    """Of what is run again; the records of the others stay."""
    for name, result in layout.results().items():
        if result.get("error") and (result["setting"], result["label"]) in asked:
            shutil.rmtree(layout.cell(name))
