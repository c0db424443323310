"""Means with their spread, and paired differences, over a handful of seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Two-sided 95% quantiles of Student's t, by degrees of freedom; the normal's beyond.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}


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
    return Estimate(statistics.fmean(values), error, _T95.get(len(values) - 1, 1.96) * error, len(values))


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
        differences: [S][P], value − baseline for each seed and, in the same order for all seeds, each problem; one
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
