"""The three domains of the proving ground by name, and records of their problems as plain text.

>>> from tropd.proving_ground.domains import grade, records
>>> record = records("code", "test", 1, seed=0)[0]
>>> grade("code", record["prompt"], record["solution"]).correct
True
"""

import random
from typing import Any

from tropd.proving_ground.code import CODE
from tropd.proving_ground.instructions import INSTRUCTIONS
from tropd.proving_ground.mathematics import MATHEMATICS
from tropd.proving_ground.problems import Domain, Grade, Split, distinct_problems

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (MATHEMATICS, CODE, INSTRUCTIONS)}


def records(domain: str, split: Split, count: int, seed: int, level: int | None = None) -> list[dict[str, Any]]:
    """Different problems as records of text; the same arguments give the same records.

    `prompt` is what a model reads and all that `grade` needs; `solution` is one right response out of many, `answer`
    what it comes to in short; `domain` and `level` say where the problem is from. Without a level, levels are mixed
    as in training.
    """
    chosen = find_domain(domain)
    rng = random.Random(f"solutions {domain} {split} {seed} {level}")
    return [
        {
            "prompt": problem.prompt,
            "solution": chosen.solve(problem, rng),
            "answer": chosen.answer(problem),
            "domain": domain,
            "level": problem_level,
        }
        for problem, problem_level in distinct_problems(chosen, split, count, seed, level)
    ]


def grade(domain: str, prompt: str, response: str) -> Grade:
    """Whether a response to a prompt of the domain is right, and if not, what is wrong first."""
    chosen = find_domain(domain)
    return chosen.judge(chosen.parse(prompt), response)


def reward(prompts: list[str], completions: list[str], domain: list[str], **columns: Any) -> list[float]:
    """1 for each response that is right, else 0: a reward function, for `reward_funcs` and benchmarks of one's own."""
    asked = zip(domain, prompts, completions, strict=True)
    return [float(grade(name, prompt, response).correct) for name, prompt, response in asked]


def find_domain(name: str) -> Domain:
    if name not in DOMAINS:
        raise ValueError(f"domain is {name!r}; there are {len(DOMAINS)}. Choose {', '.join(DOMAINS)}.")
    return DOMAINS[name]
