"""The spread over seeds, shared between mechanisms: with three seeds none of them knows its own.

A difference of two mechanisms over n seeds has its own variance with n - 1 degrees of freedom, of which two are as good
as nothing. The variances of the others tell how large such variances are, and how alike: so much they count (Smyth
2004, doi:10.2202/1544-6115.1027, the moderated t test):

    s^2 = (d0 s0^2 + (n - 1) v) / (d0 + n - 1)       d0 + n - 1 degrees of freedom

with s0^2 the mean over all pairs and d0 from the scatter of the mechanisms' log variances. Never below s0^2 itself, so
that no pair gains from a small v. Mechanisms ten times as restless as the middle one are left to themselves.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attensor.compare.statistics import Estimate, Sample

__all__ = ["Shared", "shared"]

_RESTLESS = 10.0


@dataclass(frozen=True)
class Shared:
    """What mechanisms together know of the variance of a difference over seeds.

    Attributes:
        names: those that take part.
        variance: s0^2, of one seed's difference.
        freedom: d0, of it; 0 when there is nothing to share.
    """

    names: frozenset[str] = frozenset()
    variance: float = 0.0
    freedom: float = 0.0

    def moderated(self, pair: tuple[Sample, Sample], found: Estimate) -> Estimate:
        """The estimate of a difference with the shared variance in it."""
        if not self.freedom or not found.is_known or not self.names.issuperset(sample.name for sample in pair):
            return found
        own = found.seeds * found.count
        freedom = self.freedom + found.seeds_freedom
        mixed = (self.freedom * self.variance + found.seeds_freedom * own) / freedom
        return replace(found, seeds=max(mixed, self.variance) / found.count, seeds_freedom=freedom)


def shared(samples: Sequence[Sample]) -> Shared:
    """What these mechanisms have to share: nothing for fewer than three with the same seeds, two at least."""
    seeds = max((frozenset(sample.scores) for sample in samples), key=len, default=frozenset())
    whole = [sample for sample in samples if sample.scores.keys() == seeds]
    if len(whole) < 3 or len(seeds) < 2:
        return Shared()
    order = sorted(seeds)
    scores = torch.tensor([[sample.scores[seed] for seed in order] for sample in whole], dtype=torch.float64)
    calm = _calm(_pair_variances(scores))
    if len(calm) < 3:
        return Shared()
    scores, names = scores[calm], frozenset(whole[index].name for index in calm)
    variance = float(_pair_variances(scores).mean())
    most = (len(seeds) - 1) * (len(calm) - 2)  # as if all variances were the same
    effects = scores - scores.mean(1, keepdim=True)
    own = (effects - effects.mean(0)).var(1).tolist()  # of each, about what a seed does to all
    return Shared(names, variance, min(_alikeness(own, len(seeds) - 1), float(most)))


def _pair_variances(scores: Tensor) -> Tensor:
    """Variances over seeds of all differences, [mechanisms, mechanisms - 1], of scores [mechanisms, seeds]."""
    count = len(scores)
    variances = (scores[:, None] - scores).var(2)  # [mechanisms, mechanisms]
    return variances[~torch.eye(count, dtype=torch.bool)].view(count, count - 1)


def _calm(variances: Tensor) -> list[int]:
    """Those whose differences from the others are not far more restless than is usual here."""
    middle = variances.median(1).values
    return [index for index, value in enumerate(middle.tolist()) if value <= _RESTLESS * float(middle.median())]


def _alikeness(variances: list[float], freedom: int) -> float:
    """d0: degrees of freedom of the distribution that the true variances come from; infinite if they can be equal."""
    if min(variances) <= 0:
        return 0.0
    scatter = statistics.variance([math.log(value) for value in variances])
    excess = scatter - float(torch.special.polygamma(1, torch.tensor(freedom / 2, dtype=torch.float64)))
    return 2 * _inverse_trigamma(excess) if excess > 0 else math.inf


def _inverse_trigamma(value: float) -> float:
    low, high = 1e-6, 1e9
    for _ in range(100):
        middle = math.sqrt(low * high)
        is_above = float(torch.special.polygamma(1, torch.tensor(middle, dtype=torch.float64))) > value
        low, high = (middle, high) if is_above else (low, middle)
    return low
