"""Distributions over a vocabulary of V tokens, as NumPy float64 vectors, one state at a time."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def vector(values: ArrayLike) -> Array:
    """`values` as a float64 vector [V]."""
    array = np.asarray(values, dtype=np.float64)
    assert array.ndim == 1, f"the reference works on one state at a time, got shape {array.shape}"
    return array


def final_logits(
    raw: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Array:
    """What the softmax sees: softcap(scale · (raw + bias)) / temperature, softcap(z) = c · tanh(z / c)."""
    logits = vector(raw)
    if bias is not None:
        logits = logits + vector(bias)
    logits = scale * logits
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    return logits / temperature


def log_softmax(
    raw: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Array:
    """log π(v) = z_v − log Σ_w exp z_w; a logit of −inf is a token of probability 0."""
    logits = final_logits(raw, bias=bias, scale=scale, softcap=softcap, temperature=temperature)
    largest = max(logits)
    assert math.isfinite(largest), "a distribution needs one token with a finite logit, and none of +inf"
    log_normaliser = largest + math.log(math.fsum(math.exp(z - largest) for z in logits))
    return logits - log_normaliser


def head_logp(
    hidden: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    bias: ArrayLike | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> NDArray[np.float64]:
    """Log-probs [N, V] of an output head: `hidden` [N, D] times the rows of `weight` [V, D]."""
    options = {"bias": bias, "scale": scale, "softcap": softcap, "temperature": temperature}
    rows = []
    for state in np.asarray(hidden, dtype=np.float64):
        raw = [math.fsum(h * w for h, w in zip(state, row, strict=True)) for row in weight]
        rows.append(log_softmax(raw, **options))
    return np.array(rows)


def entropy(logp: ArrayLike) -> float:
    """H(π) = −Σ π(v) log π(v), in nats, with 0 · log 0 = 0."""
    return -math.fsum(math.exp(lp) * lp for lp in vector(logp) if lp > -math.inf)


def logp_of(logp: ArrayLike, tokens: list[int]) -> Array:
    """The log-probs of some tokens."""
    return vector([vector(logp)[token] for token in tokens])


def top_k(logp: ArrayLike, k: int) -> list[int]:
    """The k likeliest tokens, likeliest first; of equals the lower id first; all of them if k exceeds V."""
    values = vector(logp)
    assert k >= 1, f"k is {k}; a top-k needs at least one token"
    by_rank = sorted(range(len(values)), key=lambda token: (-values[token], token))
    return by_rank[:k]


def mixture_logp(weights_and_logps: list[tuple[float, Array]]) -> Array:
    """log Σ_i w_i π_i(v), each token by itself."""
    size = len(weights_and_logps[0][1])
    mixed = [math.fsum(w * math.exp(logp[v]) for w, logp in weights_and_logps) for v in range(size)]
    return vector([math.log(m) if m > 0 else -math.inf for m in mixed])
