"""Scores of a model on a setting's texts: greedy accuracy by domain, exact distance to its teacher."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ...evaluation.exact import exact_divergence, sample_responses
from ...models.sampling import sample
from ...proving_ground.domains import DOMAINS, grade
from ...teacher.endings import PairEndings
from ..plan import DIVERGENCES, Plan
from .texts import Text

EVALUATION_SEED = 7_000_000
"""Seed of the model's samples on evaluation prompts, the same for every cell."""

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Measured:
    """What a model scored."""

    # `accuracy`, `ended`, `length` and `<states>/<divergence>`, means over parts; with `/<part>` appended, of that
    # part. Without a grader `ended` and `length` are those of sampled responses
    scores: dict[str, float]
    right: dict[str, str]  # part → a character for each problem, `1` where the whole response is right and has ended
    # the same for episodes at temperature 1; empty for a single turn
    sampled: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ruler:
    """Everything a measurement needs besides the model: the teacher of each part, the tokenizer of all, their
    endings."""

    teachers: Mapping[str, Any]
    tokenizer: Any
    endings: PairEndings
    plan: Plan

    def measure(self, model: Any, texts: Sequence[Text], stops: Sequence[int] | None = None) -> Measured:
        """Accuracy and endings where there are graders, divergences on the first `divergence_prompts` of each part."""
        stops = list(self.endings.ids if stops is None else stops)
        right, scores = self._graded(model, texts, stops)
        for part, mine in by_part(texts).items():  # a divergence that is not finite is no score, and neither is a mean
            for name, value in self._divergences(model, part, mine[: self.plan.divergence_prompts], stops).items():
                scores[f"{name}/{part}"] = value
        return Measured(with_means(scores), right)

    def accuracy(self, model: Any, texts: Sequence[Text], stops: Sequence[int] | None = None) -> dict[str, float]:
        """Share of problems whose whole greedy response is right, of each domain and on average."""
        _, scores = self._graded(model, texts, list(self.endings.ids if stops is None else stops))
        return with_means({name: value for name, value in scores.items() if name.startswith("accuracy")})

    def _graded(self, model: Any, texts: Sequence[Text], stops: list[int]) -> tuple[dict[str, str], dict[str, float]]:
        """Verdicts on greedy responses, and the shares that are right, that end, and how many tokens they have."""
        right: dict[str, str] = {}
        scores: dict[str, float] = {}
        for part, mine in by_part(texts).items():
            if part not in DOMAINS:
                continue
            answers = self._greedy(model, mine, stops)
            ended = [bool(ids) and ids[-1] in stops for ids, _ in answers]
            verdicts = [
                end and grade(part, text.prompt, response).correct
                for end, text, (_, response) in zip(ended, mine, answers, strict=True)
            ]
            right[part] = "".join(str(int(verdict)) for verdict in verdicts)
            scores[f"accuracy/{part}"] = fmean(verdicts)
            scores[f"ended/{part}"] = fmean(ended)
            scores[f"length/{part}"] = fmean(len(ids) for ids, _ in answers)
        return right, scores

    def _greedy(self, model: Any, texts: Sequence[Text], stops: list[int]) -> list[tuple[list[int], str]]:
        answered: list[tuple[list[int], str]] = []
        for start in range(0, len(texts), ROWS_AT_ONCE):
            rows = texts[start : start + ROWS_AT_ONCE]
            ids = sample(
                model,
                [text.prompt_ids for text in rows],
                max_new_tokens=self.plan.max_length,
                eos_ids=stops,
                pad_id=self.tokenizer.pad_token_id,
                temperature=0.0,
            )
            responses = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            answered += zip(ids, responses, strict=True)
        return answered

    def _divergences(self, model: Any, part: str, texts: Sequence[Text], stops: list[int]) -> dict[str, float]:
        """Exact divergences on the teacher's states (its own texts) and on the model's (its samples)."""
        if not texts:
            return {}
        prompts, pad = [text.prompt_ids for text in texts], self.tokenizer.pad_token_id
        sampled = sample_responses(
            model, prompts, max_new_tokens=self.plan.max_length, eos_ids=stops, pad_id=pad, seed=EVALUATION_SEED
        )
        responses = {"student_states": sampled, "teacher_states": [text.response_ids for text in texts]}
        found = {
            states: exact_divergence(
                model, self.teachers[part], prompts, rows, pad_id=pad, endings=self.endings.as_one
            ).as_dict()
            for states, rows in responses.items()
        }
        values = {f"{states}/{name}": found[states][name] for states in found for name in DIVERGENCES}
        if part not in DOMAINS:  # elsewhere `_graded` looks at greedy responses
            values["ended"] = fmean(bool(ids) and ids[-1] in stops for ids in sampled)
            values["length"] = fmean(len(ids) for ids in sampled)
        return {name: value for name, value in values.items() if math.isfinite(value)}


def by_part(texts: Sequence[Text]) -> dict[str, list[Text]]:
    parts: dict[str, list[Text]] = {}
    for text in texts:
        parts.setdefault(text.part, []).append(text)
    return parts


def with_means(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores of all parts, and under the name without a part the mean over parts, where each of them has it.

    >>> with_means({"accuracy/code": 0.25, "accuracy/mathematics": 0.75})["accuracy"]
    0.5
    """
    names: dict[str, list[float]] = {}
    for name, value in scores.items():
        names.setdefault(name.rpartition("/")[0], []).append(value)
    parts = {name.rpartition("/")[2] for name in scores}
    return {**{name: fmean(values) for name, values in names.items() if len(values) == len(parts)}, **scores}
