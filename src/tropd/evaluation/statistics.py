"""Means with their spread, and paired differences, over a handful of seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` runs with its standard error and 95% half-width (Student's t); `nan` spread for one run."""

    mean: float
    standard_error: float
    half_width: float
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard error and 95% half-width.

    >>> e = estimate([1.0, 2.0, 3.0]); e.mean, round(e.standard_error, 3), round(e.half_width, 2)
    (2.0, 0.577, 2.48)
    """
    if not values:
        raise ValueError("an estimate needs at least one value")
    if len(values) == 1:
        return Estimate(values[0], math.nan, math.nan, 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), error, t_quantile(len(values) - 1) * error, len(values))


@cache
def t_quantile(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t, to three decimals as in printed tables.

    >>> t_quantile(2), t_quantile(11), t_quantile(1000)
    (4.303, 2.201, 1.962)
    """
    low, high = 1.0, 16.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, freedom) < 0.95 else (low, middle)
    return round(low, 3)


def _t_probability(t: float, freedom: int) -> float:
    """P(|T| < t), in closed form for whole degrees of freedom: Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% bootstrap interval; both bounds are `nan` where there is nothing to draw again."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap_interval(differences: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Percentile interval of a mean difference, drawing seeds and problems anew, each with replacement.

    Args:
        differences: [S, P], value − baseline for each seed and, in the same order for all seeds, each problem; one
            column where a seed has one number.
        seed: of the draws.

    >>> bootstrap_interval([[0.5, 0.5], [0.5, 0.5]])
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    import numpy as np

    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"differences have the shape {table.shape}; give at least one seed with at least one number")
    seeds, problems = table.shape
    if table.size == 1:
        return Interval(float(table[0, 0]), math.nan, math.nan)
    seed_weights, problem_weights = _weights(seeds, problems, seed)
    means = ((seed_weights @ table) * problem_weights).sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(table.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _weights(seeds: int, problems: int, seed: int) -> tuple[Any, Any]:
    """[RESAMPLES, S] and [RESAMPLES, P]: how often each is drawn, as shares; the same for every pair of a size."""
    import numpy as np

    rng = np.random.default_rng(seed)
    seed_weights = rng.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    return seed_weights, rng.multinomial(problems, [1 / problems] * problems, RESAMPLES) / problems
