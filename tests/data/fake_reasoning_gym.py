"""A package of the shape of reasoning-gym, with tasks that go wrong in the ways that its tasks do."""

PACKAGE = {"__init__.py": "from . import tasks\n", "factory.py": "DATASETS = {}\n"}
PACKAGE["tasks.py"] = """
from dataclasses import dataclass
from random import Random
from .factory import DATASETS


@dataclass
class Config:
    seed: int = 0
    size: int = 10
    largest: int = 10000

    def __post_init__(self):
        assert self.largest > 0, "largest must be positive"


class Double:
    def __init__(self, config):
        self.config = config

    def __getitem__(self, number):
        n = Random(self.config.seed + number).randrange(self.config.largest)
        return {"question": f"What is twice {n}?", "answer": str(2 * n), "metadata": {"n": n, "place": (number,)}}

    def score_answer(self, answer, entry):
        if answer == entry["answer"]:
            return 1.0
        return 0.25 if entry["answer"] in answer else 0.0


class Blind(Double):
    def score_answer(self, answer, entry):
        return 1.0


class Mute(Double):
    def score_answer(self, answer, entry):
        return 0.9


class Odd(Double):
    def score_answer(self, answer, entry):
        return float(answer == entry["answer"] and entry["metadata"]["n"] % 3 > 0)


class Stumbles(Double):
    def score_answer(self, answer, entry):
        return float(int(answer) == eval(entry["answer"]))


class Runs(Double):
    def score_answer(self, answer, entry):
        return float(eval(answer) == int(entry["answer"]))


def parse_expr(text):
    return int(text)


def read(answer):
    return parse_expr(answer)


class RunsInside(Double):
    def score_answer(self, answer, entry):
        return self.compare(answer, entry)

    def compare(self, answer, entry):
        return float(read(answer) == int(entry["answer"]))


for kind in (Double, Blind, Mute, Odd, Stumbles, Runs, RunsInside):
    DATASETS[kind.__name__.lower()] = (kind, Config)
"""
