"""Lengths at which the order of two mechanisms turns round: in quality between 1x and 4x, in the cost of a layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

from attensor.compare.pairs import Comparison
from attensor.compare.readings import layer_times, overtaken

__all__ = ["cost_crossings", "quality_crossings"]

Row = Mapping[str, Any]


def cost_crossings(results: Row, names: Collection[str]) -> list[dict[str, Any]]:
    """Where forward and backward of `b` become faster than those of `a`, outside the noise: the first such length.

    Args:
        results: as in results.json.
        names: one of the two is among these.
    """
    times = {row["name"]: layer_times(row) for row in results["mechanisms"]}
    found = []
    for one, other in combinations(times, 2):
        if (one in names or other in names) and (turn := overtaken(times[one], times[other])):
            length, is_first_faster = turn
            a, b = (one, other) if is_first_faster else (other, one)
            found.append({"of": "cost", "a": a, "b": b, "length": length})
    return found


def quality_crossings(comparisons: Mapping[int, Comparison]) -> list[dict[str, Any]]:
    """Where `b` becomes better than `a`, both decided: the first such length.

    Args:
        comparisons: length -> comparison of the scores at it.
    """
    shortest, *longer = sorted(comparisons)
    found = []
    for (a, b), pair in comparisons[shortest].pairs.items():
        turned = [length for length in longer if comparisons[length].is_worse(a, b)]
        if pair.is_decided and turned:
            found.append({"of": "quality", "a": a, "b": b, "length": turned[0]})
    return found
