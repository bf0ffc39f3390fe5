"""Mean scores and differences with what they are sure of: the spread over seeds, and the choice of the test units.

A mean over `n` seeds on test units u (files weighted by their bytes, or images) has the variance

    S / n + sum_u w_u^2 e_u^2 - I          S over seeds, e_u of unit u from the mean, I counted in both

crossed effects of seeds and units (Owen, arXiv:0712.1111): each of the first two holds the interaction of seeds and
units once, so one of them goes. Degrees of freedom after Welch and Satterthwaite. Everything here is a cost, lower
is better: an accuracy comes with its sign turned.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attensor.metrics.student import t_quantile, two_sided_p

__all__ = ["Estimate", "Sample", "difference", "estimate", "samples", "score", "unit_weights"]

Row = Mapping[str, Any]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """The scores of one mechanism as costs.

    Attributes:
        name: of the mechanism.
        scores: seed -> score on the whole test set.
        units: seed -> scores of the test units, [units] float64; empty where they were not kept.
    """

    name: str
    scores: Mapping[int, float]
    units: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.scores.values())


@dataclass(frozen=True)
class Estimate:
    """A mean and the variance of it.

    Attributes:
        value: the mean.
        count: seeds.
        seeds: variance of the mean from the seeds; nan for one seed.
        seeds_freedom: degrees of freedom of that.
        units: variance that the choice of the test units adds; 0 where nothing is known of it.
        units_freedom: degrees of freedom of that.
    """

    value: float
    count: int
    seeds: float
    seeds_freedom: float
    units: float = 0.0
    units_freedom: float = math.inf

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.seeds + self.units)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the error, by Welch and Satterthwaite."""
        total = self.seeds + self.units
        parts = self.seeds**2 / self.seeds_freedom if self.seeds else 0.0
        parts += self.units**2 / self.units_freedom if self.units else 0.0
        return total**2 / parts if parts else math.inf

    @property
    def is_known(self) -> bool:
        """Whether the error can be told: not from one seed."""
        return not math.isnan(self.seeds)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The range that holds the true mean with this probability; infinite where nothing is known."""
        if not self.is_known:
            return -math.inf, math.inf
        half = t_quantile((1 + confidence) / 2, self.freedom) * self.error if self.error else 0.0
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided probability of a mean this far from zero if the true one is zero; 1 where nothing is known."""
        if not self.is_known or not self.value:
            return 1.0
        return two_sided_p(self.value / self.error, self.freedom) if self.error else 0.0


def unit_weights(results: Row) -> Tensor | None:
    """Weights of the test units, [units] float64 with sum 1; None where they are not known or fewer than two."""
    units = (results.get("quality") or {}).get("units") or {}
    weights = torch.tensor(units.get("weights") or [], dtype=torch.float64)
    return weights / weights.sum() if len(weights) > 1 and float(weights.sum()) > 0 else None


def samples(results: Row, factor: str = "1x") -> list[Sample]:
    """The mechanisms of which every seed of the plan has a final score, as costs.

    Args:
        results: as in results.json.
        factor: `"1x"`, `"2x"` or `"4x"`, the length in training lengths. The units' scores are those at 1x.
    """
    sign = 1.0 if results["quality"]["lower_is_better"] else -1.0
    seeds = (results.get("plan") or {}).get("seeds") or []
    found = []
    for row in results["mechanisms"]:
        runs = [run for run in row.get("runs") or [] if (run.get("final") or {}).get(factor) is not None]
        if not runs or len(runs) < len(seeds) or row.get("status") == "failed":
            continue
        units = {run["seed"]: sign * torch.tensor(run["units"], dtype=torch.float64) for run in runs if _is_whole(run)}
        found.append(Sample(row["name"], {run["seed"]: sign * run["final"][factor] for run in runs}, units))
    return found


def _is_whole(run: Row) -> bool:
    units = run.get("units") or []
    return len(units) > 0 and None not in units


def estimate(sample: Sample, weights: Tensor | None) -> Estimate:
    """The mean score of one mechanism."""
    return _estimate(sample.scores, sample.units, weights)


def difference(better: Sample, worse: Sample, weights: Tensor | None) -> Estimate:
    """The cost of `worse` above that of `better`: seed by seed and unit by unit where both had the same seeds."""
    seeds = sorted(better.scores.keys() & worse.scores.keys())
    if len(seeds) < min(2, len(better.scores), len(worse.scores)):
        return _unpaired(_estimate(better.scores, {}, None), _estimate(worse.scores, {}, None))
    units = {s: worse.units[s] - better.units[s] for s in seeds if s in worse.units and s in better.units}
    return _estimate({seed: worse.scores[seed] - better.scores[seed] for seed in seeds}, units, weights)


def score(results: Row, sample: Sample, weights: Tensor | None) -> dict[str, float | None]:
    """`mean`, `spread` (half the range over the seeds), and the 95 % interval `low` to `high`; null from one seed."""
    sign = 1.0 if results["quality"]["lower_is_better"] else -1.0
    values, found = sample.scores.values(), estimate(sample, weights)
    low, high = sorted(sign * end for end in found.interval())
    return {
        "mean": sign * sample.mean,
        "spread": (max(values) - min(values)) / 2,
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
    }


def _estimate(scores: Mapping[int, float], units: Mapping[int, Tensor], weights: Tensor | None) -> Estimate:
    values, count = list(scores.values()), len(scores)
    variance = statistics.variance(values) / count if count > 1 else math.nan
    found = Estimate(statistics.fmean(values), count, variance, count - 1)
    usable = [units[seed] for seed in scores if seed in units]
    if weights is None or len(usable) < count or any(len(one) != len(weights) for one in usable):
        return found
    share, freedom = _units_share(torch.stack(usable), weights, variance)
    return replace(found, units=share, units_freedom=freedom)


def _units_share(units: Tensor, weights: Tensor, seeds: float) -> tuple[float, float]:
    """What the choice of units [seeds, units] adds to the variance `seeds`, and its degrees of freedom."""
    count = len(units)
    of_seed = units @ weights  # [seeds]
    means = units.mean(0)  # [units]
    # the jackknife: the mean without a unit, for each of them
    without = (of_seed.mean() - weights * means) / (1 - weights)
    total = len(weights)
    share = float((total - 1) / total * (without - without.mean()).square().sum())
    if count > 1:
        rest = units - means - (of_seed - of_seed.mean())[:, None]
        both = float((weights.square() * rest.square().sum(0) / (count - 1)).sum()) / count
        share = max(share - both, share - seeds, 0.0)
    freedom = float(weights.square().sum().square() / weights.pow(4).sum())
    return share, max(1.0, min(freedom, total - 1))


def _unpaired(better: Estimate, worse: Estimate) -> Estimate:
    variance = better.seeds + worse.seeds
    freedom = replace(better, units=worse.seeds, units_freedom=worse.seeds_freedom).freedom if variance > 0 else 1.0
    return Estimate(worse.value - better.value, min(better.count, worse.count), variance, freedom)
