"""How each model of the family is trained; the seed of a build is added to every mixture's."""

from tropd.proving_ground.batches import Mixture
from tropd.proving_ground.domains import DOMAINS
from tropd.proving_ground.family import GENERALIST, SPECIALISTS, STUDENT
from tropd.proving_ground.learning import Plan

TEACHER_AT_LEAST = 0.95
"""Greedy accuracy wanted of a teacher on each of its domains."""
STUDENT_BAND = (0.2, 0.5)
"""Greedy accuracy wanted of a student on each domain."""

_ALIKE = tuple((name, 1.0) for name in DOMAINS)


def generalist_plan(seed: int) -> Plan:
    """From random weights, easy problems first."""
    return Plan(GENERALIST, Mixture(_ALIKE, seed, easy_steps=2000), steps=7000, learning_rate=3e-3)


def specialist_plan(domain: str, seed: int) -> Plan:
    """From the generalist's weights, one domain alone."""
    mixture = Mixture(((domain, 1.0),), seed + 1)
    return Plan(SPECIALISTS[domain], mixture, steps=500, learning_rate=1e-3, warmup_steps=20)


def student_plan(seed: int) -> Plan:
    """From random weights, until every domain is inside the band; easy problems first."""
    mixture = Mixture(_ALIKE, seed + 2, easy_steps=1500)
    return Plan(STUDENT, mixture, steps=8000, learning_rate=3e-3, enough=0.25, steps_between_evaluations=250)
