"""What was measured of a model, in its card: a section for readers, and `model-index` in the head for the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..atomic_files import write_whole
from .results import EXPLANATION, title

CARD = "README.md"
HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def head_of(card: str) -> dict[str, Any]:
    """The metadata at the head of a card; {} where it has none.

    >>> head_of("---\\ntags:\\n- tropd\\n---\\n# A model\\n")
    {'tags': ['tropd']}

    Raises:
        ValueError: what stands there cannot be read.
    """
    found = HEAD.match(card)
    try:
        head = yaml.safe_load(found[1]) or {} if found else {}
    except yaml.YAMLError as error:
        raise ValueError(f"the head of the model card is not YAML ({error}). Mend it, or remove the file.") from error
    if not isinstance(head, dict):
        raise ValueError("the head of the model card holds no fields. Mend it, or remove the file.")
    return head


def with_head(card: str, head: Mapping[str, Any]) -> str:
    """The card with another head."""
    written = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{written}---\n{HEAD.sub('', card, count=1)}"


def with_measured(card: str, kind: str, section: str, accuracies: Mapping[str, float], name: str) -> str:
    """The card with a section of what was measured, in the place of an earlier one of this kind.

    >>> once = with_measured("# A model\\n", "evaluate", "## Evaluation\\n\\n50%\\n", {"GSM8K": 0.5}, "a-model")
    >>> twice = with_measured(once, "evaluate", "## Evaluation\\n\\n60%\\n", {"GSM8K": 0.6}, "a-model")
    >>> "50%" in once, "50%" in twice, head_of(twice)["model-index"][0]["results"][0]["metrics"]
    (True, False, [{'type': 'accuracy', 'value': 0.6}])

    Args:
        card: the text of the file.
        kind: one word; sections of other kinds stay.
        section: Markdown, from its heading on.
        accuracies: of benchmarks, by their titles, in [0, 1].
        name: of the model, for `model-index`.
    """
    head = head_of(card)
    before = head.get("model-index") or [{"name": name, "results": []}]
    kept = [result for result in before[0]["results"] if result["dataset"]["name"] not in accuracies]
    head["model-index"] = [{**before[0], "results": kept + [_result(*one) for one in accuracies.items()]}]
    begin, end = f"<!-- {kind}: begin -->\n", f"<!-- {kind}: end -->\n"
    body = re.sub(f"\n?{re.escape(begin)}.*?{re.escape(end)}", "", card, flags=re.DOTALL)
    return with_head(f"{body.rstrip()}\n\n{begin}{section}{end}", head)


def _result(benchmark: str, accuracy: float) -> dict[str, Any]:
    """A benchmark's result as the Hub reads one; its data set is no repository there, but the files that were asked."""
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": re.sub(r"\W+", "-", benchmark.lower()).strip("-"), "name": benchmark},
        "metrics": [{"type": "accuracy", "value": round(accuracy, 4)}],
    }


def check_card(model: str) -> None:
    """Refuse a model without a card that can be added to.

    Raises:
        ValueError: it is no folder with a `README.md`, or the head of that cannot be read.
    """
    path = Path(model) / CARD
    if not path.is_file():
        raise ValueError(f"card is set, but {path} is not there. Name the folder of a run, or leave --card out.")
    head_of(path.read_text(encoding="utf-8"))


def write_scores_to_card(model: str, described: Mapping[str, Mapping[str, Any]]) -> Path:
    """Put the scores of an evaluation, as in `scores.json`, into the card of the model's folder; the card's path."""
    path = Path(model) / CARD
    rows = [
        f"| {title(name)} | {one['problems']} × {one['samples']} | {percent(one['accuracy'])} "
        f"| {percent(one['error_sampling'])} | {percent(one['error_problems'])} |"
        for name, one in described.items()
    ]
    table = ["| benchmark | problems × samples | accuracy | ± sampling | ± problems |", "|---|---|---|---|---|", *rows]
    section = "\n".join(["## Evaluation", "", "By `tropd evaluate`, in percent.", "", *table, "", EXPLANATION, ""])
    accuracies = {title(name): one["accuracy"] for name, one in described.items()}
    card = with_measured(path.read_text(encoding="utf-8"), "evaluate", section, accuracies, Path(model).resolve().name)
    write_whole(path, card)
    return path


def percent(share: float | None) -> str:
    """A share in percent, with one digit; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}"
