"""Growth exponents of measured costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["exponent", "growth"]


def growth(points: Sequence[tuple[float, float]]) -> float:
    """The power with which y grows with x: least squares through the points (x, y) on logarithmic axes."""
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    return statistics.linear_regression(x, y).slope


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The power of the length with which a cost grows, by `growth`.

    Only the upper half of the lengths counts (at least three points), where constant costs no longer hide the growth.

    Args:
        points: (length, cost).
    Returns:
        1.0 for linear, 2.0 for quadratic growth; None with fewer than three points or a cost of zero.
    """
    upper = sorted(points)[-max(3, math.ceil(len(points) / 2)) :]
    if len(upper) < 3 or any(cost <= 0 for _, cost in upper):
        return None
    return growth(upper)
