"""Growth exponents of measured costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PowerLaw", "exponent", "growth", "power_law"]

# of a growth that is called a power of the length: points, their relative deviation, the exponent's standard error
_FEWEST_POINTS, _MOST_DEVIATION, _MOST_ERROR = 4, 0.05, 0.1
# exponents that are tried: so many steps make one, first every so many of them
_STEPS, _COARSE = 200, 20


def growth(points: Sequence[tuple[float, float]]) -> float:
    """The power with which y grows with x: least squares through the points (x, y) on logarithmic axes."""
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    return statistics.linear_regression(x, y).slope


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The power of the length with which a cost grows: 1.0 for linear, 2.0 for quadratic growth.

    Of the ranges of upper lengths, at least four of them, it is that of the `power_law` with the smallest standard
    error. None when no range is near enough to such a law, as where an algorithm changes between two lengths or the
    data leaves the processor's cache.

    Args:
        points: (length, cost).
    """
    upper = sorted(points)
    if any(cost <= 0 for _, cost in upper):
        return None
    laws = [power_law(upper[first:]) for first in range(len(upper) - _FEWEST_POINTS + 1)]
    good = [law for law in laws if law.deviation <= _MOST_DEVIATION and law.error <= _MOST_ERROR]
    return min(good, key=lambda law: law.error).exponent if good else None


@dataclass(frozen=True)
class PowerLaw:
    """`constant + factor * length ** exponent`, with the standard error of the exponent.

    Attributes:
        deviation: of the points from it, relative, as a root of the mean square over the degrees of freedom.
    """

    constant: float
    factor: float
    exponent: float
    error: float
    deviation: float


def power_law(points: Sequence[tuple[float, float]]) -> PowerLaw:
    """The law with a constant >= 0 whose relative deviations from four or more (length, cost) are least in squares.

    With its constant, costs that do not grow hide nothing; with each deviation relative, all lengths count alike.
    """

    def squares_of(step: int) -> float:
        return _relative_fit(points, step / _STEPS)[2]

    near = min(range(_COARSE, 4 * _STEPS, _COARSE), key=squares_of)
    power = min(range(near - _COARSE + 1, near + _COARSE), key=squares_of) / _STEPS
    constant, factor, squares = _relative_fit(points, power)
    degrees = len(points) - (3 if constant else 2)
    deviation = math.sqrt(squares / degrees)
    # what is left of the derivative by the exponent when the other parameters have done what they can
    slope = [factor * x**power * math.log(x) / y for x, y in points]
    others = [[x**power / y for x, y in points]] + ([[1 / y for _, y in points]] if constant else [])
    return PowerLaw(constant, factor, power, deviation / max(_norm_beside(slope, others), 1e-12), deviation)


def _relative_fit(points: Sequence[tuple[float, float]], power: float) -> tuple[float, float, float]:
    """Constant >= 0 and factor >= 0 for one exponent, and the sum of the squares of the relative deviations."""
    rows = [(1 / y, x**power / y) for x, y in points]
    ones, both, powers = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    one, other = (sum(row[i] for row in rows) for i in (0, 1))
    determinant = ones * powers - both * both
    constant = (one * powers - other * both) / determinant if determinant > 1e-12 * ones * powers else 0.0
    constant = constant if constant > 0 else 0.0
    factor = (other - constant * both) / powers
    if factor < 0:
        constant, factor = one / ones, 0.0
    return constant, factor, sum((1 - constant * u - factor * v) ** 2 for u, v in rows)


def _norm_beside(vector: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Length of the part of a vector that is at right angles to the others (Gram-Schmidt)."""
    basis: list[list[float]] = []
    for other in (*others, vector):
        left = list(other)
        for unit in basis:
            share = sum(u * v for u, v in zip(unit, left, strict=True))
            left = [v - share * u for u, v in zip(unit, left, strict=True)]
        norm = math.hypot(*left)
        basis.append([v / norm if norm else 0.0 for v in left])
    return norm
