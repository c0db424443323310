"""A comparison as data: the recipe, and the cells it asks for. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..objective.methods import get_method
from ..objective.schedules import guidance_fraction, prefix_length


@dataclass(frozen=True)
class Recipe:
    """What is compared, on what, at which budget; read from YAML by `load_recipe`.

    Attributes:
        keep_layers: the student is the teacher with these layers.
        num_prompts: how many prompts for `train`, `validation` and `test`.
        prompt_tokens: shortest and longest prompt, in tokens.
        prompt_seed: seed of the prompts.
        max_length: L_max, tokens of prefix and continuation together.
        prompts_per_step: prompts of one optimiser step.
        rollouts_per_prompt: sequences of each.
        student_tokens: budget of student-written tokens of one run.
        learning_rates: the grid every method chooses from.
        grid_seed: seed of the runs that choose the learning rate, on validation prompts.
        seeds: seeds of the reported runs, on test prompts.
        select_on: validation metric that chooses, smaller is better, as `<states>/<metric>`.
        methods: label → method name and changed parts.
        trainer: further fields of `TrOPDConfig`.
    """

    keep_layers: list[int]
    num_prompts: dict[str, int]
    prompt_tokens: tuple[int, int]
    prompt_seed: int
    max_length: int
    prompts_per_step: int
    rollouts_per_prompt: int
    student_tokens: int
    learning_rates: list[float]
    grid_seed: int
    seeds: list[int]
    select_on: str
    methods: dict[str, dict[str, Any]]
    trainer: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_per_step(self) -> int:
        return self.prompts_per_step * self.rollouts_per_prompt

    def method_of(self, label: str):
        """The resolved method behind a row label."""
        return get_method(**({"name": label} | _as_changes(self.methods[label])))

    def steps_of(self, label: str) -> int:
        """Optimiser steps after which a run has written the budget of student tokens.

        A guided rollout writes only what its prefix leaves, so guided runs take more steps for the same tokens. The
        count assumes full-length rollouts; what was really written is measured and reported.
        """
        method = self.method_of(label)
        unguided = self.student_tokens / (self.rows_per_step * self.max_length)
        if not method.guided:
            return max(1, round(unguided))
        steps = max(1, round(unguided))
        while self._tokens_written(method, steps) < self.student_tokens:
            steps += 1
        return steps

    def _tokens_written(self, method, steps: int) -> int:
        lengths = (
            prefix_length(
                method.guidance_length,
                guidance_fraction(method.guidance_schedule, step, steps),
                response_length=self.max_length,
                max_length=self.max_length,
            )
            for step in range(steps)
        )
        return self.rows_per_step * sum(self.max_length - length for length in lengths)


@dataclass(frozen=True)
class Cell:
    """One run: a method at a learning rate with a seed."""

    label: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.label}-lr{self.learning_rate:g}-seed{self.seed}"


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        ValueError: an unknown or missing key, or a method that does not resolve, named with the file.
    """
    data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    known = {f.name for f in fields(Recipe)}
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a recipe: its top level must map field names to values")
    unknown = set(data) - known
    if unknown:
        raise ValueError(f"{path} has unknown keys: {', '.join(sorted(unknown))}. Known: {', '.join(sorted(known))}.")
    missing = known - set(data) - {"trainer"}
    if missing:
        raise ValueError(f"{path} lacks: {', '.join(sorted(missing))}.")
    recipe = Recipe(**data)
    for label in recipe.methods:
        recipe.method_of(label)
    return recipe


def grid_cells(recipe: Recipe) -> list[Cell]:
    """Every method at every learning rate, with the grid's seed."""
    return [Cell(label, rate, recipe.grid_seed) for label in recipe.methods for rate in recipe.learning_rates]


def report_cells(recipe: Recipe, chosen: Mapping[str, float]) -> list[Cell]:
    """Every method at its chosen learning rate, with every seed."""
    return [Cell(label, chosen[label], seed) for label in recipe.methods for seed in recipe.seeds]


def choose_learning_rates(recipe: Recipe, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """For each method the grid's rate with the smallest validation `select_on`; a failed run counts as infinite."""
    states, metric = recipe.select_on.split("/")

    def score(cell: Cell) -> float:
        result = results[cell.name]
        return float("inf") if result.get("failure") else result["validation"][states][metric]

    cells = grid_cells(recipe)
    return {
        label: min((cell for cell in cells if cell.label == label), key=score).learning_rate for label in recipe.methods
    }


def _as_changes(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    changes = dict(settings or {})
    if "method" in changes:
        changes["name"] = changes.pop("method")
    return changes
