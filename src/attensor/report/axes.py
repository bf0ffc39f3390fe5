"""Axes of plots: their range, and ticks at round numbers with the text that stands beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attensor.report.numbers import rounded

__all__ = ["Axis", "axis", "log_axis", "places_axis", "score_axis", "size_axis"]

Format = Callable[[float], str]

# leading digits of ticks, densest first
_TICK_DIGITS = (
    *([digit / 10 for digit in range(10, 100, step)] for step in (1, 2, 5)),
    *(range(1, 10), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)),
)


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: below or beside it.
        low, high: its ends, in the units of the data.
        ticks, texts: places and what stands there.
        is_log: whether it is logarithmic.
    """

    title: str
    low: float
    high: float
    ticks: list[float]
    texts: list[str]
    is_log: bool = False


def axis(values: Sequence[float], text: Format = rounded, title: str = "", *, most: int = 8) -> Axis:
    """A linear axis from the least to the greatest value."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (0.05 * abs(low) or 1.0), high + (0.05 * abs(high) or 1.0)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((step for digit in (1, 2, 5) if (step := digit * power) >= rough), 10 * power)
    ticks = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return Axis(title, low, high, ticks, [text(round(tick, 12)) for tick in ticks])


def score_axis(values: Sequence[float], text: Format = rounded, title: str = "") -> Axis:
    """A linear axis with a little room beyond these values."""
    margin = 0.06 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
    return axis([min(values) - margin, max(values) + margin], text, title)


def log_axis(values: Sequence[float], text: Format, title: str = "") -> Axis:
    """A logarithmic axis with labelled ticks at round numbers: as many as have room."""
    low, high = math.log10(min(values) / 1.1), math.log10(max(values) * 1.1)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks: list[float] = []
    for digits in _TICK_DIGITS:
        round_numbers = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [number for number in round_numbers if low <= math.log10(number) <= high]
        gaps = (math.log10(after / before) for before, after in itertools.pairwise(ticks))
        if min(gaps, default=high) > (high - low) / 11:
            break
    return _logarithmic(ticks, text, title, low, high)


def size_axis(values: Sequence[float], text: Format, title: str = "") -> Axis:
    """A logarithmic axis with at most nine labelled ticks at powers of two: for lengths and bytes."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    every = max(1, math.ceil((high - low) / 8))
    ticks = [2.0**power for power in range(low - low % every, high + every, every)]
    return _logarithmic(ticks, text, title, math.log10(min(values) / 1.1), math.log10(max(values) * 1.1))


def places_axis(places: Sequence[float], texts: Sequence[str], title: str = "", *, is_log: bool = False) -> Axis:
    """An axis with ticks at these places alone, which need not be numbers: 1x, 2x, 4x."""
    low, high = min(places), max(places)
    if is_log:
        return _logarithmic(places, dict(zip(places, texts, strict=True)).__getitem__, title, *_around(low, high))
    margin = 0.04 * (high - low) or 0.5
    return Axis(title, low - margin, high + margin, list(places), list(texts))


def _around(low: float, high: float) -> tuple[float, float]:
    return math.log10(low / 1.1), math.log10(high * 1.1)


def _logarithmic(ticks: Sequence[float], text: Format, title: str, low: float, high: float) -> Axis:
    """A logarithmic axis from `low` to `high`, which are powers of ten, and a little beyond."""
    margin = 0.03 * (high - low)
    low, high = 10 ** (low - margin), 10 ** (high + margin)
    shown = [tick for tick in ticks if low <= tick <= high]
    return Axis(title, low, high, shown, [text(tick) for tick in shown], True)
