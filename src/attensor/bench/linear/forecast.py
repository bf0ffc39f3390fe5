"""What a call will take, from the calls before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Forecast"]

STEEPEST = 2.0  # exponent of the length; a noisy pair of short calls must not promise worse than that


class _Point(NamedTuple):
    tokens: int
    length: int
    seconds: float


class Forecast:
    """Seconds of each contestant so far, carried on as a power of the length and in proportion to the tokens."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, ...], list[_Point]] = {}

    def add(self, key: tuple[str, ...], tokens: int, length: int, seconds: float) -> None:
        """Remember a measurement.

        Args:
            key: names the contestant and what it does.
            tokens: of a call, all sequences together.
            length: of a sequence.
            seconds: of a call.
        """
        self._points.setdefault(key, []).append(_Point(tokens, length, seconds))

    def seconds(self, key: tuple[str, ...], tokens: int, length: int) -> float | None:
        """Seconds to expect; None when nothing is known. With one length known, time is taken to grow in proportion."""
        points = self._points.get(key)
        if not points:
            return None
        here = [point for point in points if point.tokens == tokens]
        elsewhere = [point for point in points if point.tokens != tokens]
        nearest = min(here or elsewhere, key=lambda point: abs(math.log(length / point.length)))
        exponent = _exponent(here) if len(here) > 1 else _exponent(elsewhere)
        growth: float = (length / nearest.length) ** exponent
        return nearest.seconds * growth * tokens / nearest.tokens


def _exponent(points: Sequence[_Point]) -> float:
    """Of the length, between the last two of equal tokens; 1 when there are none."""
    for later, earlier in zip(points[:0:-1], points[-2::-1]):
        if later.tokens == earlier.tokens and later.length != earlier.length:
            slope = math.log(later.seconds / earlier.seconds) / math.log(later.length / earlier.length)
            return min(max(slope, 0.0), STEEPEST)
    return 1.0
