"""The token inspector: logged rollouts as data of the page, which its own script shows token by token."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..visible import visible
from .choice import MOST_OF_ONE
from .page import REGIONS

COLUMNS = ("log_ratio", "rollout_logp", "teacher_logp", "student_logp", "direct", "loss")
"""Numbers of a token, in the order in which the script reads them, behind its text and region."""


@dataclass(frozen=True)
class Inspector:
    """The part of a page with its rollouts; `data` is JSON of which nothing can be taken for markup."""

    data: str
    runs: Sequence[str]
    steps: Sequence[int]
    note: str


def inspector(
    names: Sequence[str], divergences: Sequence[str], rollouts: Sequence[Sequence[Mapping[str, Any]]], note: str
) -> Inspector:
    """Rollouts as the page holds them."""
    regions = list(REGIONS)
    shown = [_rollout(number, record, regions) for number, records in enumerate(rollouts) for record in records]
    data: dict[str, Any] = {"runs": [visible(name) for name in names], "regions": [r.name for r in REGIONS.values()]}
    data |= {"divergences": list(divergences)}
    data |= {"marks": [region.mark for region in REGIONS.values()], "rollouts": shown}
    steps = sorted({rollout["step"] for rollout in shown})
    return Inspector(_as_data(data), names, steps, note)


def _rollout(run: int, record: Mapping[str, Any], regions: Sequence[str]) -> dict[str, Any]:
    tokens = record["tokens"]
    found = {
        "run": run,
        "step": record["step"],
        "row": record["row"],
        "prompt": visible(record["prompt"]),
        "prefix": record["prefix_length"],
        "cut": max(0, len(tokens) - MOST_OF_ONE),
        "ended": record.get("ended_by") is not None,
        "included": record["included"],
        "tokens": [_token(token, regions) for token in tokens[:MOST_OF_ONE]],
    }
    if not tokens:
        found["response"] = visible(record["response"])
    if "episode" in record:  # a tool's words stand in their place; a model's are the tokens
        parts = [part for part in record["episode"] if part["at"] <= MOST_OF_ONE]
        found["episode"] = [
            [part["at"], part["author"], visible(part["text"]) if part["author"] == "tool" else ""] for part in parts
        ]
    if "teacher" in record:
        found["teacher"] = visible(record["teacher"])
    return found


def _token(token: Mapping[str, Any], regions: Sequence[str]) -> list[Any]:
    region = regions.index(token["region"]) if token["region"] in regions else len(regions) - 1
    numbers = [None if (value := token.get(name)) is None else round(value, 3) for name in COLUMNS]
    likeliest = [[visible(text), round(logp, 3)] for text, logp in token.get("alternatives", ())]
    return [visible(token["text"]), region, *numbers, token["id"], likeliest]


def _as_data(value: Any) -> str:
    """JSON that is safe within a script element: no `<`, `>`, `&`, and no line separator of JavaScript's."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
