"""What the measured points say: ranks and ties, growth exponents, who leads at which length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Leader", "exponent", "growth", "leaders", "ranked", "tied"]


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


def ranked(rows: Sequence[dict[str, Any]], *, lower_is_better: bool, key: str = "score") -> list[dict[str, Any]]:
    """The rows that have the score `key`, best first."""
    scored = [row for row in rows if row[key] is not None]
    return sorted(scored, key=lambda row: row[key]["mean"] if lower_is_better else -row[key]["mean"])


def tied(order: Sequence[dict[str, Any]], *, key: str = "score") -> list[dict[str, Any]]:
    """The first of `order`, and those whose distance from it the spreads of the two can explain."""
    best = order[0][key]
    return [row for row in order if abs(row[key]["mean"] - best["mean"]) <= row[key]["spread"] + best["spread"]]


@dataclass(frozen=True)
class Leader:
    """Who is fastest between two measured lengths, both included."""

    name: str
    first: int
    last: int


def leaders(times: Mapping[str, Mapping[int, float]], *, noise: float) -> list[Leader]:
    """Who is fastest at which lengths; the lead changes only when the new one is faster by the factor `noise`.

    Args:
        times: name -> length -> time. A name that stopped early is out of the race beyond.
        noise: ratio of times that means nothing.
    """
    parts: list[Leader] = []
    for length in sorted({length for of_name in times.values() for length in of_name}):
        there = {name: of_name[length] for name, of_name in times.items() if length in of_name}
        fastest = min(there, key=lambda name: there[name])
        if parts and there.get(parts[-1].name, math.inf) <= noise * there[fastest]:
            fastest = parts[-1].name
        if parts and parts[-1].name == fastest:
            parts[-1] = Leader(fastest, parts[-1].first, length)
        else:
            parts.append(Leader(fastest, length, length))
    return parts
