"""Which learning rates are tried: a grid that grows until the best of them is not at its edge."""

from __future__ import annotations

from collections.abc import Sequence

from attensor.compare.artefacts import Pilot

__all__ = ["best_pilot", "is_at_edge", "next_rate"]

FACTOR = 3.0
_MOST_TO_A_SIDE = 3


def best_pilot(pilots: Sequence[Pilot], *, lower_is_better: bool) -> Pilot | None:
    """The pilot with the best score, of equal ones that with the smallest rate; None where all diverged."""
    finite = [pilot for pilot in pilots if pilot.score is not None]
    sign = 1 if lower_is_better else -1
    return min(finite, key=lambda pilot: (sign * (pilot.score or 0.0), pilot.learning_rate), default=None)


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
    best = best_pilot(pilots, lower_is_better=lower_is_better)
    lowest, highest = min(rates), max(rates)
    if best is None or best.learning_rate == lowest:
        return _rounded(lowest / FACTOR) if sum(rate < min(first) for rate in rates) < _MOST_TO_A_SIDE else None
    if best.learning_rate == highest:
        return _rounded(highest * FACTOR) if sum(rate > max(first) for rate in rates) < _MOST_TO_A_SIDE else None
    return None


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def is_at_edge(pilots: Sequence[Pilot], *, lower_is_better: bool) -> bool | None:
    """Whether the best rate is the smallest or largest that was tried; None where there is no choice or no best."""
    best = best_pilot(pilots, lower_is_better=lower_is_better)
    rates = {pilot.learning_rate for pilot in pilots}
    return None if best is None or len(rates) < 2 else best.learning_rate in (min(rates), max(rates))
