"""A setting with an environment: its problems with the teacher's episodes, and how good a model is in it.

The episodes of a measurement are those of `tropd.evaluation.episodes`, with a store of its own for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

import torch

from ...evaluation.episodes import Episode, play
from ...evaluation.exact import state_divergences
from ...models.files import read_model_files
from ...proving_ground.storeroom import Storeroom, is_right, orders
from ..plan import DIVERGENCES, LEVELS, SPLITS, TURNS, Plan
from .scores import EVALUATION_SEED, ROWS_AT_ONCE, Measured, Ruler, by_part, with_means
from .texts import Splits, Text, load_model


def make_episodes(teacher: str, plan: Plan) -> Splits:
    """Problems of every level and split with an episode of the teacher at temperature 1; levels take turns."""
    model, files = load_model(teacher).eval(), read_model_files(teacher)
    found: Splits = {}
    for stream, split in enumerate(SPLITS):
        columns = [orders(split, plan.prompts[split], plan.prompt_seed, [level]) for level in LEVELS.values()]  # type: ignore[arg-type]
        asked = [order.row() for row in zip(*columns, strict=True) for order in row]
        played = play_all(model, files.tokenizer, asked, plan, files.eos_ids, 1.0, plan.prompt_seed + stream)
        parts = {level: name for name, level in LEVELS.items()}
        found[split] = [
            Text(
                row["prompt"],
                episode.prompt_ids,
                episode.response,
                parts[row["level"]],
                {name: value for name, value in row.items() if name != "prompt"},
                episode.messages,
                episode.external,
            )
            for row, episode in zip(asked, played, strict=True)
        ]
    return found


def play_all(
    model: Any, tokenizer: Any, rows: Sequence[Any], plan: Plan, stops: Sequence[int], temperature: float, seed: int
) -> list[Episode]:
    """An episode of each row, as long as those of training may be."""
    most = plan.trainer.get("max_tool_calling_iterations")
    limits = {} if most is None else {"max_turns": most + 1}
    played: list[Episode] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        played += play(
            model,
            tokenizer,
            rows[start : start + ROWS_AT_ONCE],
            environment=Storeroom,
            eos_ids=stops,
            max_length=plan.max_length,
            temperature=temperature,
            seed=seed,
            first_row=start,
            **limits,
        )
    return played


@dataclass(frozen=True)
class EpisodeRuler(Ruler):
    """Success greedy and at temperature 1, calls and those that fail, distance to the teacher, and trust by turn."""

    def measure(self, model: Any, texts: Sequence[Text], stops: Sequence[int] | None = None) -> Measured:
        """As of a setting of one turn; beside it, of the episodes at temperature 1, `sampled` (success), `calls` and
        `failures` of an episode, and `trust_<n>`, 1 − TV in turn n, each by level."""
        stops, scores = list(self.endings.ids if stops is None else stops), {}
        greedy, sampled = (self._play(model, texts, stops, temperature) for temperature in (0.0, 1.0))
        right: dict[str, dict[str, str]] = {"accuracy": {}, "sampled": {}}
        for name, episodes in (("accuracy", greedy), ("sampled", sampled)):
            for part, mine in episodes.items():
                verdicts = [succeeds(episode, stops) for episode in mine]
                right[name][part] = "".join(str(int(verdict)) for verdict in verdicts)
                scores[f"{name}/{part}"] = fmean(verdicts)
        for part, mine in greedy.items():
            scores[f"ended/{part}"] = fmean(has_ended(episode, stops) for episode in mine)
            scores[f"length/{part}"] = fmean(episode.external.count(False) for episode in mine)
        for part, mine in sampled.items():
            scores[f"calls/{part}"] = fmean(episode.calls for episode in mine)
            scores[f"failures/{part}"] = fmean(failures(episode) for episode in mine)
        few = self.plan.divergence_prompts
        for part, own in by_part(texts).items():
            scores |= self._distances(model, part, own[:few], sampled[part][:few])
        return Measured(with_means(scores), right["accuracy"], right["sampled"])

    def accuracy(self, model: Any, texts: Sequence[Text], stops: Sequence[int] | None = None) -> dict[str, float]:
        """Share of problems that the likeliest episode solves, of each level and on average."""
        stops = list(self.endings.ids if stops is None else stops)
        played = self._play(model, texts, stops, 0.0)
        return with_means(
            {f"accuracy/{part}": fmean(succeeds(e, stops) for e in episodes) for part, episodes in played.items()}
        )

    def _play(
        self, model: Any, texts: Sequence[Text], stops: list[int], temperature: float
    ) -> dict[str, list[Episode]]:
        rows = [{"prompt": text.prompt, **text.columns} for text in texts]
        played = play_all(model, self.tokenizer, rows, self.plan, stops, temperature, EVALUATION_SEED)
        found: dict[str, list[Episode]] = {}
        for text, episode in zip(texts, played, strict=True):
            found.setdefault(text.part, []).append(episode)
        return found

    def _distances(self, model: Any, part: str, texts: Sequence[Text], sampled: Sequence[Episode]) -> dict[str, float]:
        """Exact, on the teacher's states and on the model's; what tools said is no state of theirs."""
        if not texts:
            return {}
        found: dict[str, float] = {}
        prompts = [text.prompt_ids for text in texts]
        states: dict[str, Sequence[Text] | Sequence[Episode]] = {"student_states": sampled, "teacher_states": texts}
        for name, rows in states.items():
            values = state_divergences(
                model,
                self.teachers[part],
                prompts,
                [row.response[:] if isinstance(row, Episode) else row.response_ids for row in rows],
                pad_id=self.tokenizer.pad_token_id,
                endings=self.endings.as_one,
                external=[row.external for row in rows],
            )
            means = values[:, :3].mean(0).tolist()
            found |= {f"{name}/{kind}/{part}": mean for kind, mean in zip(DIVERGENCES, means, strict=True)}
            if name == "student_states":
                turns = torch.tensor([turn for row in rows for turn in turn_numbers(row.external)])
                for turn in range(1, TURNS + 1):
                    if (turns == turn).any():
                        found[f"trust_{turn}/{part}"] = 1 - values[turns == turn, 2].mean().item()
        return found


def turn_numbers(external: Sequence[bool]) -> list[int]:
    """For each token that a model wrote, in which of its turns, counted from 1.

    >>> turn_numbers([False, False, True, False])
    [1, 1, 2]
    """
    runs = [len(list(run)) for told, run in groupby(external) if not told]
    return [turn for turn, length in enumerate(runs, 1) for _ in range(length)]


def has_ended(episode: Episode, stops: Sequence[int]) -> bool:
    """Has the model come to its end by itself?"""
    return not episode.is_cut and bool(episode.response) and episode.response[-1] in stops


def succeeds(episode: Episode, stops: Sequence[int]) -> bool:
    """Is everything where it should be, does the last word say so, and has the episode ended?"""
    return has_ended(episode, stops) and is_right(episode.environment, episode.messages[-1].get("content") or "")


def failures(episode: Episode) -> int:
    """Calls that went wrong: that could not be made, and that the store has answered with an error."""
    return episode.failures + int(episode.environment.errors)
