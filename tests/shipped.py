"""The shipped pair that tests read and train: the family's student and its generalist, on sums worked by columns."""

from pathlib import Path
from typing import Any

from tropd.proving_ground.domains import records
from tropd.proving_ground.family import GENERALIST, STUDENT, model_path
from tropd.proving_ground.mathematics import parse


def student_path() -> Path:
    return model_path(STUDENT)


def teacher_path() -> Path:
    return model_path(GENERALIST)


def problems(count: int, seed: int = 0, level: int = 1) -> list[dict[str, Any]]:
    """Training problems of mathematics as records; at level 1 two or three numbers of two digits."""
    return records("mathematics", "train", count, seed, level)


def sums_of_two(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The problems of level 1 that add two numbers alone."""
    drawn = problems(4 * count, seed)
    return [problem for problem in drawn if len(parse(problem["prompt"]).columns[0]) == 2][:count]


def rows(count: int, seed: int = 0, level: int = 1) -> list[dict[str, str]]:
    """Their prompts alone."""
    return [{"prompt": problem["prompt"]} for problem in problems(count, seed, level)]
