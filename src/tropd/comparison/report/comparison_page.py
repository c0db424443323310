"""The report of a comparison: its results, curves and rollouts as the parts of a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...atomic_files import read_jsonl
from ...report.charts import interval_chart, legend, line_chart
from ...report.page import Page, Sample, Section, Table, page_html
from ...report.run_folder import rollout_files
from ..layout import Layout
from .curves import CURVES, OF_EPISODES, line_of, points_line
from .logged_series import stretches_of
from .results import failed_cells, reported, taken_over
from .tables import INTERVAL, cell_table, setting_tables
from .token_analysis import Cells, doubt_table, phase_table

BANDS = "Lines are means over seeds, each averaged over a few steps. Bands run from the lowest to the highest seed."
TOKENS_SHOWN = 400
"""Of a rollout; the rest is cut."""


def report_page(results: Mapping[str, Any], layout: Layout) -> str:
    """One self-contained file of HTML."""
    sections = [_setting_section(results, name, layout) for name in results["settings"]]
    page = Page(results["title"], _intro(results), _facts(results), [*sections, _all_cells(results)])
    return page_html(page)


def _intro(results: Mapping[str, Any]) -> str:
    plan = results["plan"]
    return (
        f"Each run ends when its student has written {plan['student_tokens']:,} tokens. With the same seed all methods "
        "see the same prompts in the same order; a method with teacher prefixes takes more steps for its tokens. "
        "Scores are on test problems, mean ± standard error over seeds; Δ is the paired difference to "
        f"{plan['reference']} with {INTERVAL}"
    )


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    plan, environments = results["plan"], results["environments"]
    rates = ", ".join(f"{rate:g}" for rate in plan["learning_rates"])
    many = len(plan["learning_rates"]) > 1
    facts = [
        ("seeds", ", ".join(map(str, plan["seeds"]))),
        ("learning rate", f"each method's best of {rates} on validation, seed {plan['grid_seed']}" if many else rates),
        ("a step", f"{plan['prompts_per_step']} prompts × {plan['rollouts_per_prompt']} rollouts"),
        ("longest response", f"{plan['max_length']} tokens, teacher prefix included"),
        ("prompts", ", ".join(f"{count} {split}" for split, count in plan["prompts"].items()) + ", of each domain"),
    ]
    commits = dict.fromkeys(environment["commit"] or "not known" for environment in environments)
    versions = dict.fromkeys(
        f"{name} {environment['versions'][name]}" for environment in environments for name in environment["versions"]
    )
    facts += [("commit", ", ".join(commits)), ("versions", ", ".join(versions))] if environments else []
    facts += [("hardware", results["hardware"])] if results["hardware"] else []
    return facts + ([("imported runs", taken)] if (taken := taken_over(results)) else [])


def _setting_section(results: Mapping[str, Any], name: str, layout: Layout) -> Section:
    setting, plan = results["settings"][name], results["plan"]
    if setting["error"]:
        return Section(name, note=f"This setting could not be prepared: {setting['error']}")
    cells = reported(results, name)
    numbers = {label: number for number, label in enumerate(plan["methods"])}
    lines = _charts(cells, numbers)
    return Section(
        heading=name,
        note=_about(plan["settings"][name]),
        tables=[*setting_tables(setting, plan), *_anatomy(cells, plan["reference"], layout)],
        figures=_differences(setting, plan["reference"], numbers),
        legend=legend([(label, numbers[label]) for label in cells if cells[label]]),
        charts=lines,
        charts_note=f"{BANDS}{_fewer(cells)}",
        samples=_samples(cells, layout),
    )


def _about(setting: Mapping[str, Any]) -> str:
    student = setting["student"]
    layers = None if isinstance(student, str) else ", ".join(map(str, student["keep_layers"]))
    who = _name(student) if layers is None else f"the teacher's layers {layers}"
    teachers = setting["teachers"]
    whom = "; ".join(f"{part}: {_name(of)}" for part, of in teachers.items()) or _name(setting["teacher"])
    source = "the teacher's own texts" if setting["stories"] else "prompts from files"
    what = ", ".join(setting["domains"]) or setting["environment"] or source
    return f"Student: {who}. Teacher{'s' if teachers else ''}: {whom}. Prompts: {what}."


def _name(model: str) -> str:
    """What to call a model; of a folder somewhere on a machine its own name."""
    return Path(model).name if Path(model).is_absolute() else model


def _anatomy(cells: Cells, reference: str, layout: Layout) -> list[Table]:
    phases, doubts = phase_table(cells), doubt_table(cells, layout, reference)
    phase_note = "Means over seeds. The three losses add up to the minimised loss; the loss of a policy gradient is K1."
    phase_note += _fewer(cells)
    doubt_note = (
        "From logged rollouts: each token with 1 − min(π_T/π_S, 1), the probability that the Bernoulli gate rejects "
        "it. On the right are the tokens with the largest sums, and their share of the total. These are a few "
        "rollouts, with different prompts for each method, so they do not measure a method."
    )
    return [
        *([Table("What the runs trained on, and when", *phases, note=phase_note)] if phases[1] else []),
        *([Table("Where student and teacher disagree", *doubts, note=doubt_note, words=True)] if doubts[1] else []),
    ]


def _fewer(cells: Cells) -> str:
    """Which methods' runs did not all leave a course, in a sentence; nothing where all did."""
    left = {label: sum(bool(cell.get("course")) for cell in mine) for label, mine in cells.items()}
    fewer = [f"{label} ({left[label]} of {len(mine)})" for label, mine in cells.items() if left[label] < len(mine)]
    return f" Some runs have no logged series: {', '.join(fewer)}." if fewer else ""


def _differences(setting: Mapping[str, Any], reference: str, numbers: Mapping[str, int]) -> list[str]:
    """Differences to the reference with their intervals, for accuracy and for the distance."""
    charts = []
    for metric, factor, title in (
        ("accuracy", 100, f"Accuracy, difference to {reference} (points; right is better)"),
        (
            "student_states/reverse_kl",
            1,
            f"Reverse KL on student states, difference to {reference} (nats; left is better)",
        ),
    ):
        rows = [
            (label, numbers[label], factor * d["mean"], _times(factor, d["low"]), _times(factor, d["high"]))
            for label, method in setting["methods"].items()
            if (d := method["differences"].get(metric)) is not None
        ]
        charts += [interval_chart(title, rows)] if rows else []
    return charts


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _charts(cells: Cells, numbers: Mapping[str, int]) -> list[str]:
    runs = {label: [stretches_of(cell.get("course")) for cell in mine] for label, mine in cells.items()}
    charts = []
    if any(cell.get("points") for mine in cells.values() for cell in mine):
        accuracy = [points_line(label, numbers[label], mine) for label, mine in cells.items()]
        charts.append(line_chart("Accuracy on a few validation problems (%)", accuracy, zero=True))
    every = [step for mine in runs.values() for steps in mine for step in steps]
    of_episodes = OF_EPISODES if any("agent/turns" in step for step in every) else ()
    for curve in (*CURVES, *of_episodes) if every else ():
        lines = [line_of(label, numbers[label], mine, curve) for label, mine in runs.items()]
        charts.append(line_chart(curve.title, lines, log=curve.log, zero=curve.zero))
    return charts


def _samples(cells: Cells, layout: Layout) -> list[Sample]:
    """Of each method's first seed with rollouts one from the start of its run, one from its middle and its end."""
    samples = []
    for label, mine in cells.items():
        logged = ((cell["seed"], rollout_files(layout.cell(cell["name"]))) for cell in mine)
        seed, files = next(((seed, files) for seed, files in logged if files), (None, []))
        for file in dict.fromkeys([*files[:1], *files[len(files) // 2 :][:1], *files[-1:]]):
            samples += _sample(f"{label}, seed {seed}", file)
    return samples


def _sample(whose: str, file: Path) -> list[Sample]:
    """The rollout of a file that shows the most regions."""
    records = read_jsonl(file)
    if not records:
        return []
    record = max(records, key=lambda found: len({token["region"] for token in found["tokens"]}))
    return [Sample(f"{whose}, step {record['step']}", record["prompt"], record["tokens"][:TOKENS_SHOWN])]


def _all_cells(results: Mapping[str, Any]) -> Section:
    failures = [list(row) for row in failed_cells(results)]
    ended = Table("Failed or stopped runs", ["cell", "ending", "why"], failures, words=True)
    note = "" if failures else "No run failed."
    cells = Table("Every cell", *cell_table(results), note="Cells of the grid are measured on validation prompts.")
    return Section("All cells", note=note, tables=[*([ended] if failures else []), cells])
