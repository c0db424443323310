"""Summary of episodes: success rate, with its error over problems, and calls."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .episodes import Episode
from .statistics import estimate

SCORES = ("reward", "turns", "calls", "failures", "cut", "tokens")


def record_of(episode: Episode) -> dict[str, Any]:
    """An episode as it is written down."""
    told = {name: getattr(episode, name) for name in ("messages", "reward", "turns", "calls", "failures")}
    return told | {"cut": episode.is_cut, "tokens": episode.external.count(False)}


def scores_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over problems of the means over their episodes, which name their `row`, and their standard errors.

    Returns:
        For `success` (the reward is 1; absent where nothing rewards) and each of `SCORES`: `mean` and
        `standard_error`, which is `None` of one problem; and `problems` and `episodes`, how many there were.

    >>> one = {"reward": 1.0, "turns": 2, "calls": 1, "failures": 0, "cut": False, "tokens": 9}
    >>> found = scores_of([{"row": 0} | one, {"row": 1} | one | {"reward": 0.5}])
    >>> found["success"], found["reward"]["mean"], found["episodes"]
    ({'mean': 0.5, 'standard_error': 0.5}, 0.75, 2)
    """
    by_row: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        by_row.setdefault(record["row"], []).append(record)
    found: dict[str, Any] = {"problems": len(by_row), "episodes": len(records)}
    is_rewarded = all(record["reward"] is not None for record in records)
    if is_rewarded:
        found["success"] = _over([[float(one["reward"] == 1) for one in mine] for mine in by_row.values()])
    for name in SCORES if is_rewarded else SCORES[1:]:
        found[name] = _over([[float(one[name]) for one in mine] for mine in by_row.values()])
    return found


def _over(by_row: Sequence[Sequence[float]]) -> dict[str, Any]:
    found = estimate([fmean(values) for values in by_row])
    return {"mean": found.mean, "standard_error": found.standard_error if found.n > 1 else None}
