"""Graded problems by name: the three domains of the proving ground, and the shipped pair's worked additions."""

from typing import Any

from ..proving_ground.domains import DOMAINS
from ..proving_ground.domains import grade as grade_domain
from ..proving_ground.domains import records as records_of_domain
from ..proving_ground.problems import Split

ADDITIONS = "additions"
DOMAIN_NAMES = (ADDITIONS, *DOMAINS)


def problems(domain: str, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
    """Different problems, each with its `prompt`; the same arguments give the same ones, and splits are disjoint."""
    if domain == ADDITIONS:
        from ..proving_ground import pair

        return [dict(row) for row in pair.prompts(split, count, seed)]
    return records_of_domain(domain, split, count, seed)


def is_right(domain: str, prompt: str, response: str) -> bool:
    """Is the whole response to the prompt right?"""
    if domain == ADDITIONS:
        from ..proving_ground.arithmetic import grade

        return grade(prompt, response).correct
    return grade_domain(domain, prompt, response).correct
