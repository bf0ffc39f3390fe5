"""Readings on the training curves: scores at equal time, and how long one mechanism must train for another's score.

The judged weights are a running average that does not depend on the length of a run, so a reading in mid-run is the
run of that length. Curves are scored on the selection part; here each is shifted to end at its run's score on the test
part. Between points scores are straight lines over the logarithm of the tokens.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attensor.compare.pairs import Comparison
from attensor.compare.statistics import CONFIDENCE, Sample

__all__ = ["equal_time", "equal_time_seconds", "final_tokens", "speedup"]

Row = Mapping[str, Any]
Points = list[tuple[float, float]]
# times the length of a run that an extrapolated curve is believed
_FURTHEST = 4.0
_RATES = [0.02 * 1.15**i for i in range(36)]


def whole_seconds(row: Row) -> float | None:
    """Training seconds of one seed on a machine with nothing else to do; `seconds_per_step` has the load taken out."""
    steps, each = row.get("steps"), row.get("seconds_per_step")
    return steps * each if steps and each else None


def final_tokens(row: Row) -> float | None:
    """Tokens that one seed saw."""
    ends = [run["curve"][-1]["tokens"] for run in row.get("runs") or [] if run.get("curve")]
    return max(ends, default=None)


def equal_time_seconds(results: Row) -> float | None:
    """The whole run of the fastest of the mechanisms: all have got that far then."""
    return min(
        (seconds for row in results["mechanisms"] if row.get("runs") and (seconds := whole_seconds(row))), default=None
    )


def equal_time(results: Row, found: Sequence[Sample]) -> list[Sample]:
    """The mechanisms as they stood after `equal_time_seconds`; without those whose curve or pace is not known.

    Args:
        results: as in results.json.
        found: their final scores as costs.
    """
    seconds, rows = equal_time_seconds(results), {row["name"]: row for row in results["mechanisms"]}
    sign = 1.0 if results["quality"]["lower_is_better"] else -1.0
    read = []
    for sample in found:
        whole = whole_seconds(rows[sample.name])
        curves = _curves(rows[sample.name], sample, sign)
        if seconds is None or whole is None or len(curves) < len(sample.scores):
            continue
        # the same share of a run's tokens as of its time
        at = {seed: _read(points, points[-1][0] * min(1.0, seconds / whole)) for seed, points in curves.items()}
        scores = {seed: value for seed, value in at.items() if value is not None}
        if len(scores) == len(at):
            read.append(Sample(sample.name, scores, sample.units))
    return read


def speedup(
    results: Row, found: Sequence[Sample], comparison: Comparison, baseline: str
) -> dict[str, dict[str, float | None] | None]:
    """How many times as long the baseline must train for each other's final score.

    Args:
        results: as in results.json.
        found: final scores as costs.
        comparison: of them; the interval of a difference, read on the baseline's curve, is that of the factor.
        baseline: name of the row.
    Returns:
        Name -> `factor`, `low`, `high`; what lies beyond 4 runs' length is 4 with `high` null, which reads "at
        least". Null for a mechanism without a score, or all of them when the baseline has no curve.
    """
    row = next((row for row in results["mechanisms"] if row["name"] == baseline), None)
    base = next((sample for sample in found if sample.name == baseline), None)
    names = [one["name"] for one in results["mechanisms"] if one["name"] != baseline]
    curve = _mean_curve(row, base, 1.0 if results["quality"]["lower_is_better"] else -1.0) if row and base else None
    if curve is None or base is None:
        return dict.fromkeys(names)
    means = {sample.name: sample.mean for sample in found}
    factors: dict[str, dict[str, float | None] | None] = {}
    for name in names:
        pair = comparison.pair(baseline, name)
        if pair is None:
            factors[name] = None
            continue
        half = (lambda ends: (ends[1] - ends[0]) / 2)(pair.found.interval(CONFIDENCE))
        middle, low, high = (curve.factor(means[name] + offset) for offset in (0.0, half, -half))
        factors[name] = {"factor": middle, "low": low, "high": None if high >= _FURTHEST else high}
    return factors


@dataclass(frozen=True)
class _Curve:
    """A mean curve that never rises, and a power law through its later half that goes on beyond it."""

    points: Points
    asymptote: float
    scale: float
    rate: float

    def factor(self, score: float) -> float:
        """Tokens at this score over those of the whole curve; from the first point's share to `_FURTHEST`."""
        end, last = self.points[-1]
        if score >= self.points[0][1]:
            return self.points[0][0] / end
        if score >= last:
            index = next(i for i, (_, cost) in enumerate(self.points) if cost <= score)
            (x0, y0), (x1, y1) = self.points[index - 1], self.points[index]
            share = (y0 - score) / (y0 - y1) if y0 > y1 else 1.0
            return math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0))) / end
        # what the law is off at the end is taken out, so that both halves meet
        score += self.asymptote + self.scale * end**-self.rate - last
        if score <= self.asymptote + self.scale * (_FURTHEST * end) ** -self.rate:
            return _FURTHEST
        return float(((score - self.asymptote) / self.scale) ** (-1 / self.rate) / end)


def _mean_curve(row: Row, sample: Sample, sign: float) -> _Curve | None:
    curves = list(_curves(row, sample, sign).values())
    if not curves or len(curves) < len(sample.scores):
        return None
    lengths = sorted({tokens for points in curves for tokens, _ in points})
    means = [(x, [_read(points, x) for points in curves]) for x in lengths]
    points = [(x, statistics.fmean(v for v in values if v is not None)) for x, values in means if None not in values]
    if len(points) < 4:
        return None
    falling: Points = []
    for x, y in points:
        falling.append((x, min(y, falling[-1][1]) if falling else y))
    later = falling[len(falling) // 2 - 1 :]
    return _Curve(falling, *_power_law(later))


def _power_law(points: Points) -> tuple[float, float, float]:
    """a, b, c of a + b x^-c with b > 0: least squares for a and b at each of many c, the best of them."""
    best: tuple[float, tuple[float, float, float]] | None = None
    for rate in _RATES:
        x, y = [tokens**-rate for tokens, _ in points], [cost for _, cost in points]
        if len(set(x)) < 2:
            continue
        line = statistics.linear_regression(x, y)
        loss = sum((line.intercept + line.slope * a - b) ** 2 for a, b in zip(x, y, strict=True))
        if line.slope > 0 and (best is None or loss < best[0]):
            best = loss, (line.intercept, line.slope, rate)
    # a flat curve: no training is enough for a better score
    return best[1] if best is not None else (points[-1][1], 0.0, 1.0)


def _curves(row: Row, sample: Sample, sign: float) -> dict[int, Points]:
    """Seed -> (tokens, cost on the test part), from the first token on; without the runs that kept none."""
    curves = {}
    for run in row.get("runs") or []:
        points = [
            (float(point["tokens"]), point.get("score")) for point in run.get("curve") or [] if point["tokens"] > 0
        ]
        known = [(tokens, sign * score) for tokens, score in points if score is not None]
        if known and run["seed"] in sample.scores:
            shift = sample.scores[run["seed"]] - known[-1][1]
            curves[run["seed"]] = [(tokens, cost + shift) for tokens, cost in known]
    return curves


def _read(points: Points, tokens: float) -> float | None:
    """The cost after so many tokens; None before the first point, the last one beyond the end."""
    if tokens < points[0][0] * (1 - 1e-12):
        return None
    index = bisect_left([x for x, _ in points], tokens)
    if index == 0 or index == len(points):
        return points[max(index - 1, 0)][1]
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * math.log(tokens / x0) / math.log(x1 / x0)
