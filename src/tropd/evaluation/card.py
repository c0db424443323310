"""What was measured of a model, in its card: a section for readers, and `model-index` in the head for the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..atomic_files import write_whole
from ..report.markdown import markdown_table, percent
from .results import EXPLANATION, title

CARD = "README.md"


def read_card(text: str) -> ModelCard:
    try:
        return ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"the YAML header of the model card cannot be read ({error}). Correct it, or remove the file."
        ) from error


def with_head(text: str, head: Mapping[str, Any]) -> str:
    """A card's text after its metadata."""
    return f"---\n{ModelCardData(**head).to_yaml()}\n---\n{text}"


def with_measured(card: str, kind: str, section: str, accuracies: Mapping[str, float], name: str) -> str:
    """The card with a section of what was measured, in the place of an earlier one of this kind.

    >>> once = with_measured("---\\ntags: [x]\\n---\\n", "evaluate", "## Evaluation\\n\\n50%\\n", {"GSM8K": 0.5}, "me")
    >>> twice = with_measured(once, "evaluate", "## Evaluation\\n\\n60%\\n", {"GSM8K": 0.6}, "me")
    >>> "50%" in once, "50%" in twice, [one.metric_value for one in read_card(twice).data.eval_results]
    (True, False, [0.6])
    """
    read: Any = read_card(card)
    kept = [result for result in read.data.eval_results or [] if result.dataset_name not in accuracies]
    read.data.model_name = read.data.model_name or name
    read.data.eval_results = kept + [_result(*one) for one in accuracies.items()]
    begin, end = f"<!-- {kind}: begin -->\n", f"<!-- {kind}: end -->\n"
    body = re.sub(f"\n?{re.escape(begin)}.*?{re.escape(end)}", "", read.text, flags=re.DOTALL)
    read.text = f"{body.rstrip()}\n\n{begin}{section}{end}"
    return str(read)


def _result(benchmark: str, accuracy: float) -> EvalResult:
    """A benchmark's result as the Hub reads one; its data set is no repository there, but the files that were asked."""
    kind = re.sub(r"\W+", "-", benchmark.lower()).strip("-")
    return EvalResult("text-generation", kind, benchmark, "accuracy", round(accuracy, 4))


def check_card(model: str) -> None:
    """Refuse a model without a card that can be added to: there is no `README.md`, or its head is faulty."""
    path = Path(model) / CARD
    if not path.is_file():
        raise ValueError(f"card is set, but {path} does not exist. Name the folder of a run, or remove card.")
    read_card(path.read_text(encoding="utf-8"))


def write_scores_to_card(model: str, described: Mapping[str, Mapping[str, Any]]) -> Path:
    """Put the scores of an evaluation, as in `scores.json`, into the card of the model's folder; the card's path."""
    path = Path(model) / CARD
    rows = [
        [title(name), f"{one['problems']} × {one['samples']}"]
        + [percent(one[share]) for share in ("accuracy", "error_sampling", "error_problems")]
        for name, one in described.items()
    ]
    table = markdown_table(["benchmark", "problems × samples", "accuracy", "± sampling", "± problems"], rows)
    section = f"## Evaluation\n\nBy `tropd evaluate`, in percent.\n\n{table}\n{EXPLANATION}\n"
    accuracies = {title(name): one["accuracy"] for name, one in described.items()}
    card = with_measured(path.read_text(encoding="utf-8"), "evaluate", section, accuracies, Path(model).resolve().name)
    write_whole(path, card)
    return path
