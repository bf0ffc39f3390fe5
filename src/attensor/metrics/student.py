"""Student's t distribution for any number of degrees of freedom, whole or not.

Written out with the standard library; numbers agree with scipy to 1e-8, which is 140 MB that only the extra `vision`
brings along: a comparison of text needs neither.
"""

from __future__ import annotations

import math
import statistics

__all__ = ["t_quantile", "two_sided_p"]

_TERMS = 20_000
_TINY = 1e-300
_LARGE = 1e9  # beyond, the normal distribution to 1e-9
_HALVINGS = 200


def two_sided_p(t: float, freedom: float) -> float:
    """Probability that |T| is at least |t|, under `freedom` > 0 degrees (infinity: the normal distribution)."""
    _check("two_sided_p", -math.inf, math.inf, t=t)
    _check("two_sided_p", _TINY, math.inf, freedom=freedom)
    if t == 0:
        return 1.0
    if math.isinf(t):
        return 0.0
    if freedom > _LARGE:
        return math.erfc(abs(t) / math.sqrt(2))
    return _incomplete_beta(t * t, freedom)


def t_quantile(probability: float, freedom: float) -> float:
    """The t below which lies `probability`, from 0.5 to below 1, for `freedom` > 0 degrees."""
    _check("t_quantile", 0.5, 1 - 1e-16, probability=probability)
    _check("t_quantile", _TINY, math.inf, freedom=freedom)
    tail = 2 * (1 - probability)
    z = statistics.NormalDist().inv_cdf(probability)
    if freedom > 300:  # the expansion of Fisher and Cornish: the next term is below 1e-8 here
        terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + sum(term / freedom ** (order + 1) for order, term in enumerate(terms))
    low, high = 0.0, max(1.0, 2 * z)
    while two_sided_p(high, freedom) > tail:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if two_sided_p(middle, freedom) > tail else (low, middle)
    return high


def _check(name: str, least: float, most: float, **numbers: float) -> None:
    for argument, x in numbers.items():
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not least <= x <= most:
            raise ValueError(f"{name}: {argument} must be a number from {least} to {most}, got {x!r:.60}.")


def _incomplete_beta(square: float, freedom: float) -> float:
    """I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2): Lentz's continued fraction, DLMF 8.17.22."""
    a, b = freedom / 2, 0.5
    x, rest = freedom / (freedom + square), square / (freedom + square)
    # x^a (1 - x)^b / B(a, b); log1p keeps the digits of a small t
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - a * math.log1p(square / freedom) + b * math.log(rest)
    )
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(rest, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            step = c * d
            value *= step
        if abs(step - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
