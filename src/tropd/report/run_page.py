"""The page of a run, or of several side by side: outcomes, curves, evaluations, and every logged token."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .charts import Line, legend, line_chart
from .choice import choose_rollouts
from .inspector import inspector
from .outcome import QUANTITIES, outcome
from .page import Page, Section, Table, page_html
from .run_folder import RunFolder, read_run

PAGE = "report.html"
MOST_POINTS = 120
"""Of a line; a longer one is drawn as the mean of so many stretches, in a band from the least to the greatest."""

Value = Callable[[Mapping[str, Any]], float | None]
REGION_COUNTS = {
    "trusted": "regions/num_trust",
    "outlier": "regions/num_outlier",
    "teacher prefix": "regions/num_guidance",
}
CURVES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("loss", "Loss (nats a token)", {}),
    ("trust/fraction", "Trust fraction, 1 − TV", {}),
    ("kl/k1", "Reverse KL, K1 estimate (nats a token)", {}),
    ("log_ratio/p01", "1% quantile of r (nats)", {}),
    ("grad_norm", "Gradient norm before clipping (log)", {"log": True}),
    ("entropy/student", "Student entropy (nats a token)", {"zero": True}),
    ("entropy/teacher", "Teacher entropy (nats a token)", {"zero": True}),
    ("response/length", "Tokens the student writes in a rollout", {"zero": True}),
    ("response/eos_share", "Rollouts that end (share)", {"zero": True}),
    ("guidance/prefix_length", "Teacher prefix of a rollout (tokens)", {"zero": True}),
    ("reward", "Reward", {}),
)
EVALUATED = ("loss", "kl/k1", "trust/fraction", "log_ratio/p01", "response/length", "response/eos_share", "reward")


def run_page(folders: Sequence[Path], follow: int | None = None) -> str:
    """One self-contained file of HTML."""
    runs = [read_run(folder) for folder in folders]
    names = run_names(runs)
    chosen, left_out = choose_rollouts(runs)
    many = len(runs) > 1
    return page_html(
        Page(
            title=" beside ".join(names) if many else f"{names[0]}: {runs[0].method}",
            intro=_intro(runs),
            facts=[] if many else _facts(runs[0]),
            sections=[_outcomes(runs, names), *_evaluations(runs, names), _curves(runs, names), _regions(runs, names)],
            inspector=inspector(names, [divergence(run) for run in runs], chosen, _held(chosen, left_out))
            if any(chosen)
            else None,
            follow=follow,
        )
    )


def run_names(runs: Sequence[RunFolder]) -> list[str]:
    """Of the folders; where two are alike, with the folder above, and at last with a number."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = ["/".join(run.path.resolve().parts[-2:]) for run in runs]
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        names[number] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def divergence(run: RunFolder) -> str:
    """What the method differentiates directly on the tokens that have it."""
    trust, outlier = (run.description["method"].get(part) for part in ("trust", "outlier"))
    if trust in ("jsd", "gkd"):
        return f"{str(trust).upper()} of this token"
    return "forward KL over the top-k" if "fkl" in f"{trust} {outlier}" else "divergence"


def _intro(runs: Sequence[RunFolder]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs of `tropd train`. Lines differ in dashes and markers as well as in colour."
    step = runs[0].steps[-1]["step"] if runs[0].steps else 0
    whole = runs[0].description.get("configuration", {}).get("max_steps", 0)
    known = isinstance(whole, int) and whole > 0
    if known and step < whole and runs[0].has_ended:  # by its token budget, a guard or a callback
        return f"Ended at step {step}, of at most {whole}."
    return f"Step {step}" + (f" of {whole}." if known else ".")


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    description = run.description
    method, configuration = description["method"], description.get("configuration", {})
    facts = [("method", f"{method['name']}: {method.get('summary', '')}".rstrip(": "))]
    teacher = description.get("teacher")
    named = "; ".join(f"{k}: {v}" for k, v in teacher.items()) if isinstance(teacher, dict) else teacher
    facts += [("teacher", str(named))] if named else []
    for label, name in (
        ("learning rate", "learning_rate"),
        ("rollouts per prompt", "num_generations"),
        ("longest response", "max_completion_length"),
        ("seed", "seed"),
    ):
        facts += [(label, f"{configuration[name]}")] if configuration.get(name) is not None else []
    verdict = run.preflight.get("verdict") or {}
    facts += [("preflight", str(verdict["sentences"][0]))] if verdict.get("sentences") else []
    versions = description.get("versions") or {}
    return [*facts, ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version))]


def _outcomes(runs: Sequence[RunFolder], names: Sequence[str]) -> Section:
    tables = []
    for run, name in zip(runs, names, strict=True):
        found = outcome([*run.steps, *run.evaluations], run.measurement)
        # The arrow stands with the number that it is about, where a phone shows it.
        rows = [
            [row.label, row.values[0], f"{row.values[1]} {row.moved}".rstrip(), *row.values[2:]] for row in found.rows
        ]
        tables.append(Table(_titled("Before and after", name, runs), ["", *found.titles], rows, note=found.note))
    if len(runs) > 1:
        tables.insert(0, _settings(runs, names))
    return Section("Outcome" if len(runs) == 1 else "Outcomes", tables=tables)


def _titled(what: str, name: str, runs: Sequence[RunFolder]) -> str:
    return what if len(runs) == 1 else f"{what}: {name}"


def _settings(runs: Sequence[RunFolder], names: Sequence[str]) -> Table:
    settings = [
        {"method": run.method, **run.description.get("configuration", {}), "teacher": run.description.get("teacher")}
        for run in runs
    ]
    keys = dict.fromkeys(key for one in settings for key in one if key not in ("output_dir", "logging_dir", "run_name"))
    rows = [
        [key, *(str(one.get(key, "")) for one in settings)]
        for key in keys
        if len({str(one.get(key)) for one in settings}) > 1
    ]
    return Table("Settings that differ", ["", *names], rows or [["none", *("" for _ in names)]], words=True)


def _evaluations(runs: Sequence[RunFolder], names: Sequence[str]) -> list[Section]:
    if not any(run.evaluations for run in runs):
        return []
    shown = [name for name in EVALUATED if any(f"eval_{name}" in entry for run in runs for entry in run.evaluations)]
    form = {quantity.metric: quantity.form for quantity in QUANTITIES}
    head = [*(["run"] if len(runs) > 1 else []), "step", *shown]
    rows = [
        [*([name] if len(runs) > 1 else []), str(entry["step"])]
        + ["" if (value := entry.get(f"eval_{key}")) is None else f"{value:{form.get(key, '.4f')}}" for key in shown]
        for run, name in zip(runs, names, strict=True)
        for entry in run.evaluations
    ]
    charts = [
        line_chart(title, _lines(names, [run.evaluations for run in runs], f"eval_{key}"), **how)
        for key, title, how in CURVES
        if key in ("kl/k1", "trust/fraction", "reward") and key in shown
    ]
    note = "Rollouts of evaluation prompts, without a teacher's prefix."
    return [Section("Evaluations", note=note, tables=[Table("Every evaluation", head, rows)], figures=charts)]


def _lines(names: Sequence[str], logged: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[Line]:
    pairs = enumerate(zip(names, logged, strict=True))
    return [_line(name, number, entries, lambda entry: entry.get(key)) for number, (name, entries) in pairs]


def _line(name: str, number: int, entries: Sequence[Mapping[str, Any]], value: Value) -> Line:
    """What entries logged, as a line; a long one in stretches."""
    points = [(float(e["step"]), v) for e in entries if (v := value(e)) is not None]
    many = min(MOST_POINTS, len(points))
    parts = [points[n * len(points) // many : (n + 1) * len(points) // many] for n in range(many)]
    xs = [fmean(x for x, _ in part) for part in parts]
    values = [[v for _, v in part] for part in parts]
    return Line(name, number, xs, [fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def _curves(runs: Sequence[RunFolder], names: Sequence[str]) -> Section:
    charts = []
    for key, title, how in CURVES:
        if any(step.get(key) for run in runs for step in run.steps):
            lines = _lines(names, [run.steps for run in runs], key)
            charts.append(line_chart(title, lines, **how))
    labels = [(name, number) for number, name in enumerate(names)]
    note = (
        "Each logged step."
        if all(len(run.steps) <= MOST_POINTS for run in runs)
        else (
            f"Lines are means of {MOST_POINTS} stretches of the steps, bands run from the lowest value to the highest."
        )
    )
    if not charts:
        return Section("Curves", note="No step is logged yet.")
    return Section(
        "Curves",
        legend=legend(labels) if len(runs) > 1 else "",
        charts=charts,
        charts_title="Over the steps",
        charts_note=note,
    )


def _regions(runs: Sequence[RunFolder], names: Sequence[str]) -> Section:
    charts = []
    for run, name in zip(runs, names, strict=True):
        lines = [
            _line(region, number, run.steps, region_share(count))
            for number, (region, count) in enumerate(REGION_COUNTS.items())
        ]
        charts.append(line_chart(_titled("Share of trained tokens", name, runs), lines, zero=True))
    looks = legend([(region, number) for number, region in enumerate(REGION_COUNTS)])
    return Section("Regions over time", legend=looks, charts=charts, charts_title="", charts_note="")


def region_share(name: str) -> Value:
    """A region's tokens by those of all regions; a region without any is not logged."""

    def share(step: Mapping[str, Any]) -> float | None:
        total = sum(step.get(count, 0.0) for count in REGION_COUNTS.values())
        return step.get(name, 0.0) / total if total else None

    return share


def _held(chosen: Sequence[Sequence[Any]], left_out: Sequence[int]) -> str:
    count = sum(map(len, chosen))
    rest = f"; the rollouts of {sum(left_out)} more logged steps are only in the run's folder" if any(left_out) else ""
    return f"{count} logged rollout{'' if count == 1 else 's'} on this page{rest}."
