"""Durations that stay true when the wall clock is set while a run lasts: the host measures its own by that clock."""

import time
from typing import Any

NOTICED = 1.0
"""Seconds; clocks that are kept in time by the network are slewed by less."""


class WallClock:
    """Tells by how many seconds the wall clock was set since this was made."""

    def __init__(self) -> None:
        self._wall, self._steady = time.time(), time.monotonic()

    def set_by(self) -> float:
        return (time.time() - self._wall) - (time.monotonic() - self._steady)


def correct_runtimes(logs: dict[str, Any], set_by: float) -> None:
    """Take what the wall clock was set by out of the host's `*_runtime`, and drop the rates that it made of them."""
    if abs(set_by) < NOTICED:
        return
    for name in [name for name in logs if name.endswith("_runtime")]:
        logs[name] = round(max(logs[name] - set_by, 0.0), 4)
        for rate in ("samples", "steps", "tokens"):
            logs.pop(f"{name.removesuffix('_runtime')}_{rate}_per_second", None)
