"""The same comparison at several sizes of the model: a power law for each mechanism, and whether the order stays.

    cost(N) = a N^e       N parameters; cost: bits per byte, or the share of wrong answers

by least squares over (log N, log cost) of all seeds; the interval of e is Student's, from the seeds and from how far
the sizes are from one line. All sizes have read the same tokens: this is what size is worth at that amount of data.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from attensor.compare.words import enumerated
from attensor.metrics.student import t_quantile

__all__ = ["kendall", "power_law", "scale", "scale_sentences"]

Row = Mapping[str, Any]
CONFIDENCE = 0.95


def scale(by_size: Mapping[str, Row], *, fit: bool) -> dict[str, Any]:
    """The field `scale` of results.json.

    Args:
        by_size: size -> results of that size, the smallest first.
        fit: whether to fit the power laws.
    """
    order = [row["name"] for row in list(by_size.values())[-1]["mechanisms"]]
    rows = []
    for name in order:
        found = {size: row for size, results in by_size.items() if (row := _scored(results, name)) is not None}
        points = [
            {"size": size, "parameters": row["parameters"], "score": row["score"]["mean"]}
            for size, row in found.items()
        ]
        costs = [(row["parameters"], cost) for size, row in found.items() for cost in _costs(by_size[size], row)]
        exponent, low, high = power_law(costs) if fit else (None, None, None)
        rows.append({"name": name, "points": points, "exponent": exponent, "low": low, "high": high})
    scores = [{row["name"]: _at(row, size) for row in rows if _at(row, size) is not None} for size in by_size]
    taus = [tau for one, other in combinations(scores, 2) if (tau := kendall(one, other)) is not None]
    return {"sizes": list(by_size), "rows": rows, "rank_correlation": statistics.fmean(taus) if taus else None}


def power_law(points: Sequence[tuple[float, float]]) -> tuple[float | None, float | None, float | None]:
    """The exponent with the ends of its 95 % interval, from (parameters, cost).

    Returns:
        None for each where there are fewer than two sizes, or a cost is not positive; None for the ends where fewer
        than three points leave nothing to judge by.
    """
    if len({size for size, _ in points}) < 2 or any(cost <= 0 for _, cost in points):
        return None, None, None
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    slope, intercept = statistics.linear_regression(x, y)
    freedom = len(points) - 2
    if freedom < 1:
        return slope, None, None
    middle = statistics.fmean(x)
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    error = math.sqrt(rest / freedom / sum((a - middle) ** 2 for a in x))
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * error
    return slope, slope - half, slope + half


def kendall(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Kendall's tau of two scores over the names that have both: 1 for one order, -1 for the reverse.

    A pair that is equal in either counts as half. None with fewer than two names.
    """
    names = [name for name in one if name in other]
    pairs = [(one[a] - one[b]) * (other[a] - other[b]) for a, b in combinations(names, 2)]
    return sum((product > 0) - (product < 0) for product in pairs) / len(pairs) if pairs else None


def scale_sentences(found: Row, metric: str) -> list[str]:
    """What the sizes say, for the answer."""
    tau, sizes = found["rank_correlation"], found["sizes"]
    sentences = []
    if tau is not None:
        how = "stays the same" if tau == 1 else "hardly changes" if tau >= 0.7 else "changes"
        more = "" if tau >= 0.7 else ": what is best at one of them says little of another"
        sentences.append(f"From {sizes[0]} to {sizes[-1]} the order {how} (Kendall's tau {tau:.2f}){more}.")
    fitted = sorted((row for row in found["rows"] if row["high"] is not None), key=lambda row: row["exponent"])
    if len(fitted) < 2:
        return sentences
    best = fitted[0]
    tied = [row["name"] for row in fitted[1:] if row["low"] <= best["high"]]
    what = "the share of wrong answers" if metric == "accuracy" else metric
    law = f"{what} with the power {best['exponent']:.3f} of the parameters ({best['low']:.3f} to {best['high']:.3f})"
    if tied:
        sentences.append(f"{best['name']} gains most from size, {law}; {enumerated(tied)} cannot be told from it.")
    else:
        sentences.append(f"{best['name']} gains most from size, {law}.")
    return sentences


def _scored(results: Row, name: str) -> Row | None:
    return next((row for row in results["mechanisms"] if row["name"] == name and row["score"] is not None), None)


def _costs(results: Row, row: Row) -> list[float]:
    """Of each seed."""
    scores = [run["final"]["1x"] for run in row["runs"] if run["final"]["1x"] is not None]
    return scores if results["quality"]["lower_is_better"] else [1 - score for score in scores]


def _at(row: Row, size: str) -> Any:
    return next((point["score"] for point in row["points"] if point["size"] == size), None)
