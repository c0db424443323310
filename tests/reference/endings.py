"""The ending of a response as one event: π̄(stop) = Σ_{e∈E} π(e), every other id an event of its own (METHOD 7).

Events are numbered: the ids outside E first, in their order, then `stop`. With E empty, events are ids. What the other
files say of a vocabulary they say of events as well: their divergences, gates, top-k and gradients take π̄.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .vocabulary import Array, vector


def events_of_ids(num_ids: int, endings: Sequence[int]) -> list[int]:
    """The event that each id counts as."""
    others = [v for v in range(num_ids) if v not in endings]
    return [len(others) if v in endings else others.index(v) for v in range(num_ids)]


def coarsened(logp: ArrayLike, endings: Sequence[int]) -> Array:
    """log π̄ of the V − |E| + 1 events, from log π [V]."""
    fine = vector(logp)
    masses = [math.exp(fine[e]) for e in endings]
    others = [fine[v] for v in range(len(fine)) if v not in endings]
    if not masses:
        return vector(others)
    stop = math.fsum(masses)
    return vector([*others, math.log(stop) if stop > 0 else -math.inf])


def spread_over_ids(gradient: ArrayLike, logp: ArrayLike, endings: Sequence[int]) -> Array:
    """From a gradient in the logits of π̄, by event, to that in the logits of π [V].

    π̄ is the softmax of z̄(v) = z(v) and z̄(stop) = log Σ_{e∈E} exp z(e), so ∂z̄(stop)/∂z(e) is the softmax within E: what
    e has of stop, π(e)/π̄(stop). Nothing flows where stop is impossible.
    """
    by_event, fine = vector(gradient), vector(logp)
    by_id = np.array([by_event[event] for event in events_of_ids(len(fine), endings)])
    stop = coarsened(fine, endings)[-1]
    for e in endings:
        by_id[e] *= math.exp(fine[e] - stop) if fine[e] > -math.inf else 0.0
    return by_id
