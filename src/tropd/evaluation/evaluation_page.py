"""`evaluation.html`: the responses that a folder's scores come from."""

import json
from pathlib import Path
from typing import Any

from ..atomic_files import read_jsonl
from ..report.answers import Answer, AnswersPage, BenchmarkSection, Browser, answers_html
from ..report.charts import interval_chart
from ..report.page import Table
from .benchmarks.registry import evenly
from .results import (
    EVALUATION,
    EXPLANATION,
    HEADINGS,
    part_path,
    part_rows,
    read_seen,
    score_row,
    title,
)
from .scores import Scores, interval

SHOWN = 300
"""Responses of a benchmark, at most."""
LONGEST = 6000
"""Characters of a response or a prompt; of a longer one the middle is left out."""


def evaluation_page(folder: Path, scores: dict[str, Scores]) -> str:
    """One self-contained file of HTML, from the files of an evaluation."""
    described = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))["benchmarks"]
    models = ", ".join(dict.fromkeys(Path(one["model"]["name"]).name for one in described.values()))
    rows = []
    for number, (name, found) in enumerate(scores.items()):
        low, high = interval(found)
        rows.append((title(name), number, 100 * found.accuracy, 100 * low, 100 * high))
    return answers_html(
        AnswersPage(
            title=f"Evaluation of {models}",
            intro=EXPLANATION,
            facts=_facts(described),
            scores=Table("Scores in percent", HEADINGS, [score_row(name, found) for name, found in scores.items()]),
            chart=interval_chart("accuracy in percent, with its 95% interval over problems", rows),
            sections=[
                BenchmarkSection(title(name), [Table(*part) for part in part_rows(found)], _browser(folder, name))
                for name, found in scores.items()
            ],
        )
    )


FACTS = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "seed", "dtype", "system_prompt")


def _facts(described: dict[str, Any]) -> list[tuple[str, str]]:
    """What was set, each value with the benchmarks that it was for where they differ."""
    found = []
    for name in FACTS:
        values: dict[str, list[str]] = {}
        for benchmark, one in described.items():
            values.setdefault("none" if one.get(name) is None else str(one[name]), []).append(title(benchmark))
        each = values if len(values) == 1 else {f"{value} ({', '.join(of)})": of for value, of in values.items()}
        found.append((name.replace("_", " "), ", ".join(each)))
    versions = dict.fromkeys(
        f"{name} {version}" for one in described.values() for name, version in one["versions"].items() if version
    )
    return [*found, ("versions", ", ".join(versions))]


def _browser(folder: Path, name: str) -> Browser:
    path, *answered = (part_path(folder, part, name) for part in ("problems", "responses", "verdicts"))
    problems = {row["id"]: row for row in read_jsonl(path)} if path.is_file() else {}
    pairs = list(zip(*map(read_jsonl, answered), strict=True))
    shown = evenly(pairs, SHOWN)
    several = len({verdict["sample"] for _, verdict in pairs}) > 1
    seen = read_seen(folder, name) or set()
    answers = [
        _answer(response, verdict, problems.get(verdict["problem"], {}), several, verdict["problem"] in seen)
        for response, verdict in shown
    ]
    which = "All of them." if len(shown) == len(pairs) else f"{len(shown)} of {len(pairs)}, evenly spaced."
    return Browser(
        answers,
        f"{which} Choose an outcome with a click or the arrow keys; open a line with a click, Enter or the space bar.",
    )


def _answer(
    response: dict[str, Any], verdict: dict[str, Any], problem: dict[str, Any], several: bool, seen: bool
) -> Answer:
    facts = [f"{verdict['tokens']} tokens"]
    facts += [f"answer {_short(str(verdict['answer']), 80)}"] if verdict["answer"] is not None else []
    facts += [f"gold {_short(problem['gold'], 80)}"] if problem.get("gold") else []
    facts += [_short(verdict["why"], 120)] if verdict["why"] else []
    kinds = [verdict["outcome"], *([] if verdict["ended"] else ["cut"]), *(["seen"] if seen else [])]
    heading = f"{verdict['problem']}, sample {verdict['sample']}" if several else str(verdict["problem"])
    prompt = _without_middle(problem.get("prompt", ""))
    return Answer(heading, kinds, "; ".join(facts), prompt, _without_middle(response["text"]))


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def _without_middle(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"
