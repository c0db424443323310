"""Axes: where ticks stand and what they say. Plain numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` onto the pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.log else float
        low, high = scale(self.low), scale(self.high)
        return self.start + (scale(value) - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def axis(values: Sequence[float], start: float, stop: float, *, log: bool = False, zero: bool = False) -> Axis:
    """An axis that shows all values with a little room; with `zero` it shows 0, too."""
    if log:
        low, high = min(values), max(values)
        room = (high / low) ** 0.05 if high > low else 2.0
        return Axis(low / room, high * room, start, stop, log=True)
    low, high = min([*values, *([0.0] if zero else [])]), max([*values, *([0.0] if zero else [])])
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(0.0 if zero and low == 0 else low - room, high + room, start, stop)


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round numbers from `low` to `high`.

    >>> linear_ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / wanted
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few.

    >>> log_ticks(0.5, 40)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) >= 2 else linear_ticks(low, high, wanted=3)


def label(value: float) -> str:
    """A tick's number, short.

    >>> [label(value) for value in (0.0, 0.25, 12.0, 1500.0, 2e6, 1e-5)]
    ['0', '0.25', '12', '1.5k', '2M', '1e-05']
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.4g}"
