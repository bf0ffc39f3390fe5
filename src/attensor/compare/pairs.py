"""Every pair of mechanisms compared, with Holm's correction for the number of comparisons.

All pairs count, not only those that are shown: who is called the leader is itself chosen by the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import Tensor

from attensor.compare.spread import shared
from attensor.compare.statistics import Estimate, Sample, difference

__all__ = ["ALPHA", "Comparison", "Pair", "compared"]

ALPHA = 0.05


@dataclass(frozen=True)
class Pair:
    """Two mechanisms, the better one first.

    Attributes:
        better, worse: names.
        found: the cost of the second above the first.
        p: of a difference so large if there is none, after Holm.
        is_decided: whether `p` is small enough.
        confidence: of the interval that is shown: it leaves out zero exactly when the pair is decided.
    """

    better: str
    worse: str
    found: Estimate
    p: float
    is_decided: bool
    confidence: float

    def as_row(self) -> dict[str, Any]:
        """As in results.json, the difference as an advantage of the better one; null ends for one seed."""
        low, high = self.found.interval(self.confidence) if self.found.is_known else (None, None)
        return {
            "better": self.better,
            "worse": self.worse,
            "difference": self.found.value,
            "low": low,
            "high": high,
            "p": self.p,
            "decided": self.is_decided,
        }


@dataclass(frozen=True)
class Comparison:
    """All pairs of some mechanisms.

    Attributes:
        order: names, best mean first.
        pairs: (name, name) in that order -> the pair.
    """

    order: tuple[str, ...]
    pairs: dict[tuple[str, str], Pair]

    @property
    def groups(self) -> list[list[str]]:
        """The leader with all that are not decided against it; then the same with the rest."""
        left, groups = list(self.order), []
        while left:
            leader = left[0]
            groups.append([leader, *(name for name in left[1:] if not self.pairs[leader, name].is_decided)])
            left = [name for name in left if name not in groups[-1]]
        return groups

    @property
    def shown(self) -> list[Pair]:
        """The best with each, then neighbours."""
        names = [(self.order[0], name) for name in self.order[1:]] if self.order else []
        names += list(zip(self.order, self.order[1:], strict=False))
        return [self.pairs[both] for both in dict.fromkeys(names)]

    def pair(self, one: str, other: str) -> Pair | None:
        """The pair of these two, whichever is better; None where one of them has no score."""
        return self.pairs.get((one, other)) or self.pairs.get((other, one))

    def is_worse(self, name: str, than: str, by: float = 0.0) -> bool:
        """Whether `name` is decidedly worse than the other, and by more than a margin."""
        pair = self.pairs.get((than, name))
        return pair is not None and pair.is_decided and pair.found.value > by


def compared(samples: Sequence[Sample], weights: Tensor | None) -> Comparison:
    """Compare all pairs.

    Args:
        samples: scores as costs.
        weights: of the test units, [units] with sum 1, or None.
    """
    order = sorted(samples, key=lambda sample: sample.mean)
    common = shared(order)
    both = list(combinations(order, 2))
    found = [common.moderated(pair, difference(*pair, weights)) for pair in both]
    tests = _holm([one.p for one in found])
    pairs = {
        (a.name, b.name): Pair(a.name, b.name, one, *test) for (a, b), one, test in zip(both, found, tests, strict=True)
    }
    return Comparison(tuple(sample.name for sample in order), pairs)


def _holm(p: Sequence[float]) -> list[tuple[float, bool, float]]:
    """Of each: adjusted p, whether it is decided, and the confidence of an interval that agrees with that."""
    tests: list[tuple[float, bool, float]] = [(1.0, False, 1 - ALPHA)] * len(p)
    adjusted, undecided_at = 0.0, None
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        comparisons = len(p) - rank
        adjusted = max(adjusted, min(1.0, comparisons * p[index]))
        is_decided = adjusted <= ALPHA
        undecided_at = undecided_at or (None if is_decided else comparisons)
        tests[index] = adjusted, is_decided, 1 - ALPHA / (undecided_at or comparisons)
    return tests
