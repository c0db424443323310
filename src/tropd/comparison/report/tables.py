"""The results of a comparison as Markdown, in the layout of the paper's tables: a row for each method, a column for
each domain, the average last, and beside it the paired difference to the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...report import page as report
from ...report.markdown import markdown_table
from ..plan import TURNS
from .results import failed_cells, taken_over

DISTANCES = (
    ("student_states/reverse_kl", "reverse KL, student states"),
    ("student_states/forward_kl", "forward KL, student states"),
    ("teacher_states/reverse_kl", "reverse KL, teacher states"),
    ("teacher_states/forward_kl", "forward KL, teacher states"),
    ("student_states/total_variation", "total variation, student states"),
)
NOTHING = "–"
OF_CALLS = "Calls per episode, and calls that could not be made or returned an error."
INTERVAL = (
    "its 95% interval (accuracy: bootstrap over seeds and problems; divergences: Student's t over seeds); * marks an "
    "interval that excludes zero. With one seed the interval is over problems only, and has no *."
)


def tables_markdown(results: Mapping[str, Any]) -> str:
    """All tables, setting by setting, then every cell and every failure."""
    parts = [f"# {results['title']}\n", _notes(results)]
    for name, setting in results["settings"].items():
        could_not = [f"Preparation failed: {setting['error']}\n"] if setting["error"] else []
        parts += [f"## {name}\n", *(could_not or map(_markdown, setting_tables(setting, results["plan"])))]
    parts += ["## Every cell\n", markdown_table(*cell_table(results))]
    failures = failed_cells(results)
    if failures:
        parts += [
            "## Failed or stopped runs\n",
            markdown_table(["cell", "ending", "why"], [list(row) for row in failures]),
        ]
    return "\n".join(parts)


def _notes(results: Mapping[str, Any]) -> str:
    plan = results["plan"]
    elsewhere = f" Imported runs: {taken}." if (taken := taken_over(results)) else ""
    return (
        f"{plan['student_tokens']:,} student-written tokens per run; seeds {', '.join(map(str, plan['seeds']))}. Mean "
        "± "
        f"standard error over seeds; Δ is the paired difference to `{plan['reference']}` with {INTERVAL} "
        "† marks a learning rate at the edge of the grid. docs/compare.md explains how the numbers are "
        f"computed.{elsewhere}\n"
    )


def _markdown(table: report.Table) -> str:
    note = f"\n{table.note}\n" if table.note else ""
    return f"### {table.caption}\n\n{markdown_table(table.head, table.rows)}{note}"


def setting_tables(setting: Mapping[str, Any], plan: Mapping[str, Any]) -> list[report.Table]:
    """The tables of a setting: accuracy, endings, distances, runs and the grid, as far as they were measured."""
    reference = plan["reference"]
    tables = []
    if setting["graded"]:
        tables.append(report.Table("Accuracy on test problems (%)", *accuracy_table(setting, reference)))
    if (endings := ending_table(setting)) is not None:
        how = "greedy" if setting["graded"] else "at temperature 1"
        tables.append(report.Table(f"How responses to test problems end ({how})", *endings))
    if any("sampled" in scores for _, scores in _before(setting)):
        title = "Success on test problems at temperature 1 (%)"
        tables.append(report.Table(title, *accuracy_table(setting, reference, "sampled"), note=OF_CALLS))
        note = "1 − TV, exact, on the same episodes. Late turns occur in few episodes, so they have few tokens."
        tables.append(report.Table("Trust by turn", *trust_table(setting), note=note))
    if (distances := distance_table(setting)) is not None:
        note = "Exact, over the whole vocabulary; nats per token, total variation in [0, 1]. Smaller is closer."
        tables.append(report.Table("Distance to the teacher", *distances, note=note))
    if (differences := difference_table(setting, reference)) is not None:
        title = f"Distance: paired differences to {reference}"
        tables.append(report.Table(title, *differences, note="Negative is closer to the teacher."))
    note = "Means over seeds. † marks a rate at the edge of the grid."
    tables.append(report.Table("Runs", *run_table(setting), note=note))
    if any(method["grid"] for method in setting["methods"].values()):
        tables.append(report.Table(f"Learning rates: validation {plan['select_on']}", *grid_table(setting)))
    return tables


Table = tuple[list[str], list[list[str]]]


def accuracy_table(setting: Mapping[str, Any], reference: str, score: str = "accuracy") -> Table:
    """A column for each domain, the average, and its difference to the reference; calls where episodes have them."""
    names = [f"{score}/{part}" for part in setting["parts"]]
    columns = [*names, score] if len(names) > 1 else names
    more = ["calls", "failures"] if score == "sampled" else []
    head = ["method", *setting["parts"], *(["average"] if len(names) > 1 else []), f"Δ to {reference}", *more]
    rows = [
        [
            name,
            *(_plain(scores.get(column), 100, 1) for column in columns),
            "",
            *(_plain(scores.get(column), 1, 2) for column in more),
        ]
        for name, scores in _before(setting)
    ]
    for label, method in setting["methods"].items():
        values = [_mean(method["metrics"].get(column), 100, 1) for column in columns]
        difference = _difference(method["differences"].get(columns[-1]), 100, 1)
        counts = [_mean(method["metrics"].get(column), 1, 2) for column in more]
        rows.append([_row_name(label, method), *values, difference, *counts])
    return head, rows


def trust_table(setting: Mapping[str, Any]) -> Table:
    """A column for each turn that episodes of all levels have."""
    every = [f"trust_{turn}" for turn in range(1, TURNS + 1)]
    names = [name for name in every if any(name in scores for _, scores in _before(setting))]
    head = ["method", *(f"turn {name.removeprefix('trust_')}" for name in names)]
    return head, _score_rows(setting, [(name, 1, 3) for name in names])


def ending_table(setting: Mapping[str, Any]) -> Table | None:
    """The share of responses that end, and their length; `None` where it was not measured."""
    if not any("ended" in scores for _, scores in _before(setting)):
        return None
    return ["method", "ended (%)", "tokens"], _score_rows(setting, [("ended", 100, 1), ("length", 1, 0)])


def distance_table(setting: Mapping[str, Any]) -> Table | None:
    """Exact divergences; `None` where none were measured."""
    shown = _distances(setting)
    if not shown:
        return None
    return ["method", *(title for _, title in shown)], _score_rows(setting, [(name, 1, 3) for name, _ in shown])


def _score_rows(setting: Mapping[str, Any], columns: Sequence[tuple[str, int, int]]) -> list[list[str]]:
    """Scores, each with its factor and digits: of the models before training, then of the methods."""
    before = [
        [name, *(_plain(scores.get(score), *form) for score, *form in columns)] for name, scores in _before(setting)
    ]
    return before + [
        [_row_name(label, method), *(_mean(method["metrics"].get(score), *form) for score, *form in columns)]
        for label, method in setting["methods"].items()
    ]


def difference_table(setting: Mapping[str, Any], reference: str) -> Table | None:
    """Differences of the divergences to the reference; `None` where there is nothing to compare."""
    shown = _distances(setting)
    others = {label: method for label, method in setting["methods"].items() if label != reference}
    if not shown or not others:
        return None
    rows = [
        [_row_name(label, method), *(_difference(method["differences"].get(name), 1, 3) for name, _ in shown)]
        for label, method in others.items()
    ]
    return ["method", *(f"Δ {title}" for _, title in shown)], rows


def _distances(setting: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, title) for name, title in DISTANCES if any(name in scores for _, scores in _before(setting))]


def run_table(setting: Mapping[str, Any]) -> Table:
    """What each method's runs took, as means over seeds."""
    head = ["method", "learning rate", "seeds", "steps", "student tokens", "prefix tokens", "minutes"]
    rows = []
    for label, method in setting["methods"].items():
        rate = method["learning_rate"]
        edge = "†" if method["at_edge"] else ""
        minutes = None if method["train_seconds"] is None else method["train_seconds"] / 60
        rows.append(
            [
                label,
                NOTHING if rate is None else f"{rate:g}{edge}",
                f"{len(method['seeds'])} of {method['planned']}",
                *(_count(method[name]) for name in ("steps", "student_tokens", "prefix_tokens")),
                NOTHING if minutes is None else f"{minutes:.1f}",
            ]
        )
    return head, rows


def grid_table(setting: Mapping[str, Any]) -> Table:
    """What every rate of the grid scored on validation prompts."""
    rates = list(next(iter(setting["methods"].values()))["grid"])
    rows = [
        [label, *(_plain(method["grid"][rate], 1, 3) for rate in rates)] for label, method in setting["methods"].items()
    ]
    return ["method", *rates], rows


def cell_table(results: Mapping[str, Any]) -> Table:
    """A row for each cell: reported ones were measured on test prompts, those of the grid on validation prompts."""
    columns = [("accuracy", 100, 1), ("student_states/reverse_kl", 1, 4), ("student_states/forward_kl", 1, 4)]
    head = ["cell", "steps", "student tokens", "accuracy (%)"]
    head += ["reverse KL, student states", "forward KL, student states"]
    rows = []
    for name, cell in results["cells"].items():
        scores = cell.get("scores") or {}
        values = [_plain(scores.get(column), factor, digits) for column, factor, digits in columns]
        rows.append([name, _count(cell.get("steps")), _count(cell.get("student_tokens")), *values])
    return head, rows


def _before(setting: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    before = setting["before"] or {}
    return [(name, before[name]) for name in ("teacher", "student") if name in before]


def _row_name(label: str, method: Mapping[str, Any]) -> str:
    notes = [
        f"{method[kind]} {word}" for kind, word in (("failures", "ended early"), ("errors", "failed")) if method[kind]
    ]
    notes += _missing(method)
    return f"{label} ({', '.join(notes)})" if notes else label


def _missing(method: Mapping[str, Any]) -> list[str]:
    if len(method["seeds"]) == method["planned"]:
        return []
    if method["seeds"]:
        return [f"{len(method['seeds'])} of {method['planned']} seeds"]
    return ["rate not chosen yet" if method["learning_rate"] is None else "not run yet"]


def _plain(value: float | None, factor: int, digits: int) -> str:
    return NOTHING if value is None else f"{value * factor:.{digits}f}"


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{round(value):,}"


def _mean(found: Mapping[str, Any] | None, factor: int, digits: int) -> str:
    if found is None:
        return NOTHING
    error = found["standard_error"]
    spread = "" if error is None else f" ± {error * factor:.{digits}f}"
    return f"{found['mean'] * factor:.{digits}f}{spread}"


def _difference(found: Mapping[str, Any] | None, factor: int, digits: int) -> str:
    if found is None:
        return NOTHING
    mean = f"{found['mean'] * factor:+.{digits}f}"
    if found["low"] is None:
        return mean
    star = " *" if found["excludes_zero"] else ""
    return f"{mean} [{found['low'] * factor:+.{digits}f}, {found['high'] * factor:+.{digits}f}]{star}"
