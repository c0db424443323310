"""How good a model is on a setting's texts: greedy accuracy by domain, exact distance to its teacher."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..evaluation.exact import exact_divergence, sample_responses
from ..sampling import sample
from .domains import DOMAIN_NAMES, is_right
from .plan import DIVERGENCES, Plan
from .sources import Text

EVALUATION_SEED = 7_000_000
"""Seed of the model's samples on evaluation prompts, the same for every cell."""

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Measured:
    """What a model scored.

    Attributes:
        scores: `accuracy` and `<states>/<divergence>`, means over parts; with `/<part>` behind it, of that part.
        right: part → a character for each problem, `1` where the whole response is right.
    """

    scores: dict[str, float]
    right: dict[str, str]


@dataclass(frozen=True)
class Ruler:
    """Everything a measurement needs besides the model.

    Attributes:
        teachers: by part.
        tokenizer: of all models.
        eos_ids: every id that ends a response.
        plan: the comparison.
    """

    teachers: Mapping[str, Any]
    tokenizer: Any
    eos_ids: list[int]
    plan: Plan

    def measure(self, model: Any, texts: Sequence[Text]) -> Measured:
        """Accuracy where there are graders, and divergences on the first `divergence_prompts` of each part."""
        right = self._right(model, texts)
        scores = _shares(right)  # a divergence that is not finite is no score, and neither is a mean without it
        for part, mine in _by_part(texts).items():
            for name, value in self._divergences(model, part, mine[: self.plan.divergence_prompts]).items():
                scores[f"{name}/{part}"] = value
        return Measured(_with_means(scores), right)

    def accuracy(self, model: Any, texts: Sequence[Text]) -> dict[str, float]:
        """Share of problems whose whole greedy response is right, of each domain and on average."""
        return _with_means(_shares(self._right(model, texts)))

    def _right(self, model: Any, texts: Sequence[Text]) -> dict[str, str]:
        return {
            part: "".join(
                str(int(is_right(part, text.prompt, response))) for text, response in self._greedy(model, mine)
            )
            for part, mine in _by_part(texts).items()
            if part in DOMAIN_NAMES
        }

    def _greedy(self, model: Any, texts: Sequence[Text]) -> list[tuple[Text, str]]:
        answered: list[tuple[Text, str]] = []
        for start in range(0, len(texts), ROWS_AT_ONCE):
            rows = texts[start : start + ROWS_AT_ONCE]
            ids = sample(
                model,
                [text.prompt_ids for text in rows],
                max_new_tokens=self.plan.max_length,
                eos_ids=self.eos_ids,
                pad_id=self.tokenizer.pad_token_id,
                temperature=0.0,
            )
            responses = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            answered += zip(rows, responses, strict=True)
        return answered

    def _divergences(self, model: Any, part: str, texts: Sequence[Text]) -> dict[str, float]:
        """Exact divergences on the teacher's states (its own texts) and on the model's (its samples)."""
        if not texts:
            return {}
        prompts, pad = [text.prompt_ids for text in texts], self.tokenizer.pad_token_id
        sampled = sample_responses(
            model,
            prompts,
            max_new_tokens=self.plan.max_length,
            eos_ids=self.eos_ids,
            pad_id=pad,
            seed=EVALUATION_SEED,
        )
        responses = {"student_states": sampled, "teacher_states": [text.response_ids for text in texts]}
        found = {
            states: exact_divergence(model, self.teachers[part], prompts, rows, pad_id=pad).as_dict()
            for states, rows in responses.items()
        }
        values = {f"{states}/{name}": found[states][name] for states in found for name in DIVERGENCES}
        return {name: value for name, value in values.items() if math.isfinite(value)}


def _by_part(texts: Sequence[Text]) -> dict[str, list[Text]]:
    parts: dict[str, list[Text]] = {}
    for text in texts:
        parts.setdefault(text.part, []).append(text)
    return parts


def _shares(right: Mapping[str, str]) -> dict[str, float]:
    return {f"accuracy/{part}": marks.count("1") / len(marks) for part, marks in right.items()}


def _with_means(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores of all parts, and under the name without a part the mean over parts, where each of them has it.

    >>> _with_means({"accuracy/code": 0.25, "accuracy/mathematics": 0.75})["accuracy"]
    0.5
    """
    names: dict[str, list[float]] = {}
    for name, value in scores.items():
        names.setdefault(name.rpartition("/")[0], []).append(value)
    parts = {name.rpartition("/")[2] for name in scores}
    return {**{name: fmean(values) for name, values in names.items() if len(values) == len(parts)}, **scores}
