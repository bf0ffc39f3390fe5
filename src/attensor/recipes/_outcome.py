"""The rule that turns measurements into words: one for each pass mark, and from these one for the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["RULE", "Mark", "Outcome", "count_marks", "mark_of", "outcome_of"]

Mark = Literal["reached", "not reached", "not decided"]
Outcome = Literal["reproduced", "partly", "not seen at this size"]

RULE = """A mark is **reached** or **not reached**, and **not decided** where the 95 % interval of what was measured
contains it: other seeds could have come out on its other side. From the marks follows the verdict on the paper:
**reproduced** when all are reached, **not seen at this size** when none is, or when more are missed than reached, and
**partly** otherwise. A mark that is not decided counts for neither side."""


def mark_of(passed: bool, interval: Sequence[float] | None = None, bounds: Sequence[float] = ()) -> Mark:
    """The word for one pass mark.

    Args:
        passed: whether the estimate is on the right side.
        interval: low and high end of the 95 % interval; None where there is none, then the estimate decides.
        bounds: values at which the mark turns from reached to missed; two for a mark with two sides.
    """
    if interval is not None and any(interval[0] <= bound <= interval[1] for bound in bounds):
        return "not decided"
    return "reached" if passed else "not reached"


def outcome_of(marks: Sequence[Mark]) -> Outcome:
    """The word for the paper: see `RULE`.

    Args:
        marks: those of all pass marks, at least one.
    """
    reached, missed = marks.count("reached"), marks.count("not reached")
    if reached == len(marks):
        return "reproduced"
    return "partly" if reached and reached >= missed else "not seen at this size"


def count_marks(marks: Sequence[Mark]) -> str:
    """How many are reached, missed and open: `3 of 5 marks reached, 2 not decided`."""
    parts = [f"{marks.count('reached')} of {len(marks)} mark{'s' * (len(marks) != 1)} reached"]
    parts += [f"{count} {mark}" for mark in ("not reached", "not decided") if (count := list(marks).count(mark))]
    return ", ".join(parts)
