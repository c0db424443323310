"""Selects the logged rollouts of a page: a fixed number of tokens, spread evenly over the steps."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .run_folder import RunFolder, rollout_files, whole_lines

MOST_TOKENS = 24_000
"""Of all runs of a page together, so that a phone can open it."""
MOST_OF_ONE = 2_000
"""Tokens of one rollout; the rest is cut."""


def choose_rollouts(runs: Sequence[RunFolder]) -> tuple[list[list[dict[str, Any]]], list[int]]:
    """For each run the rollouts that its share of the page has room for, by step; and how many steps were left out.

    The first and the last step come first, then those between, so that a long run is thinned out evenly.
    """
    chosen, left_out = [], []
    for run in runs:
        files = rollout_files(run.path)
        room = MOST_TOKENS // len(runs)
        kept: dict[int, list[dict[str, Any]]] = {}
        for number in spread(len(files)):
            records = whole_lines(files[number])
            size = sum(min(len(record["tokens"]), MOST_OF_ONE) for record in records)
            if kept and size > room:
                continue
            kept[number] = _cut(records, room)
            room -= size
        chosen.append([record for number in sorted(kept) for record in kept[number]])
        left_out.append(len(files) - len(kept))
    return chosen, left_out


def _cut(records: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """As many rollouts as there is room for, and one in any case."""
    kept: list[dict[str, Any]] = []
    for record in records:
        room -= min(len(record["tokens"]), MOST_OF_ONE)
        if room < 0 and kept:
            break
        kept.append(record)
    return kept


def spread(count: int) -> Iterator[int]:
    """The numbers below `count`: the last, the first, and then always the middle of what lies between.

    >>> list(spread(5))
    [4, 0, 2, 1, 3]
    """
    if count:
        yield count - 1
    if count > 1:
        yield 0
    gaps: list[tuple[int, int]] = [(0, count - 1)]
    while gaps:
        wider: list[tuple[int, int]] = []
        for low, high in gaps:
            if high - low > 1:
                middle = (low + high) // 2
                yield middle
                wider += [(low, middle), (middle, high)]
        gaps = wider


def files_of(runs: Sequence[RunFolder]) -> list[Path]:
    """Everything that a page of these runs is made from."""
    names = ("run.json", "metrics.jsonl", "preflight.json")
    return [path for run in runs for path in (*(run.path / name for name in names), *rollout_files(run.path))]
