"""Which learning rates are tried: a grid that grows until the best of them is not at its edge.

A pilot is short, and favours what starts fast: a rate that ended 0.03 bits behind led by 0.005 after 40 of 150 steps.
The middle rate ended within 0.004 of the best for all of nine mechanisms (benchmarks/results/2026-11-28-pilots.md), so
it stays unless another is ahead by more than that noise.
"""

from __future__ import annotations

from collections.abc import Sequence

from attensor.compare.artefacts import Pilot

__all__ = ["best_pilot", "is_at_edge", "next_rate"]

FACTOR = 3.0
# a part of the score: what a pilot has to be ahead of the middle rate's
MARGIN = 0.003
_MOST_TO_A_SIDE = 3


def best_pilot(pilots: Sequence[Pilot], first: Sequence[float], *, lower_is_better: bool) -> Pilot | None:
    """The pilot to take; None where all diverged.

    Args:
        pilots: those that have been run.
        first: rates that are tried in any case. The middle one (of an even number the smaller) is taken unless another
            is better by `MARGIN` of its score; else the best, of equal ones that with the smallest rate.
        lower_is_better: of the scores.
    """
    scores = {pilot.learning_rate: pilot.score for pilot in pilots if pilot.score is not None}
    if not scores:
        return None
    sign = 1 if lower_is_better else -1
    best = min(scores, key=lambda rate: (sign * scores[rate], rate))
    middle = sorted(first)[(len(first) - 1) // 2]
    if middle in scores and sign * (scores[middle] - scores[best]) <= MARGIN * abs(scores[best]):
        best = middle
    return next(pilot for pilot in pilots if pilot.learning_rate == best)


def next_rate(pilots: Sequence[Pilot], first: Sequence[float], *, lower_is_better: bool) -> float | None:
    """The rate to try next, or None when the best one is inside the grid, or nothing more is tried.

    Args:
        pilots: those that have been run.
        first: rates that are tried in any case; a single one is taken as it is. At most 3 more to either side.
        lower_is_better: of the scores.
    """
    rates = [pilot.learning_rate for pilot in pilots]
    missing = [rate for rate in first if rate not in rates]
    if missing:
        return missing[0]
    if len(first) == 1:
        return None
    best = best_pilot(pilots, first, lower_is_better=lower_is_better)
    lowest, highest = min(rates), max(rates)
    if best is None or best.learning_rate == lowest:
        return _rounded(lowest / FACTOR) if sum(rate < min(first) for rate in rates) < _MOST_TO_A_SIDE else None
    if best.learning_rate == highest:
        return _rounded(highest * FACTOR) if sum(rate > max(first) for rate in rates) < _MOST_TO_A_SIDE else None
    return None


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def is_at_edge(pilots: Sequence[Pilot], first: Sequence[float], *, lower_is_better: bool) -> bool | None:
    """Whether the rate taken is the smallest or largest that was tried; None where there is no choice or no best."""
    best = best_pilot(pilots, first, lower_is_better=lower_is_better)
    rates = {pilot.learning_rate for pilot in pilots}
    return None if best is None or len(rates) < 2 else best.learning_rate in (min(rates), max(rates))
