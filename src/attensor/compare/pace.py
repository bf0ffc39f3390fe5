"""One number of steps for all mechanisms, from the time of a step of each and the budget for all together."""

from __future__ import annotations

import heapq
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from attensor.compare.artefacts import Pace, Schedule
from attensor.compare.plan import Plan
from attensor.compare.ranking import LEAST_STEPS
from attensor.compare.subjects import Subject

__all__ = ["SCHEDULE_FILE", "WARM_UP", "decide", "expected_seconds", "paces", "pilot_steps"]

SCHEDULE_FILE = "pace.json"
# steps in which the learning rate rises, however long the run is; a pilot has as many at full rate, at the least
WARM_UP = 20
# what a pilot's points of the curve take, as a part of all evaluations of a seed
_EVALUATIONS_OF_PILOT = 0.25


def paces(run: Path, subjects: Iterable[Subject]) -> dict[str, Pace]:
    """What has been calibrated, by name."""
    found = {s.name: Pace.load(s.folder(run) / "calibration.json") for s in subjects}
    return {name: pace for name, pace in found.items() if pace is not None}


def decide(run: Path, plan: Plan) -> Schedule:
    """The schedule of the run: what it has already, or else from the paces in its folder.

    Raises:
        ValueError: the budget is too small for the fewest steps; the message has one that is enough.
    """
    kept = Schedule.load(run / SCHEDULE_FILE)
    if kept is not None:
        return kept
    known = paces(run, plan.subjects)
    if not known:
        raise ValueError(f"decide: no mechanism of {run} has been calibrated.")
    budget, steps = plan.budget_seconds, plan.steps
    if steps is None:
        steps = _most_steps(plan, known, math.inf if budget is None else budget)
        if plan.config.get("budget") is None:  # nobody asked for that time: a slow or busy machine takes longer
            steps = max(steps, LEAST_STEPS)
        if steps < LEAST_STEPS:
            needed = _seconds_text(makespan(plan, known, LEAST_STEPS))
            raise ValueError(
                f"--budget {budget:g}s: is enough for {steps} steps a run, and below {LEAST_STEPS} nothing is learned "
                f"that could be compared; {needed} would do. What has been measured is kept, go on with: "
                f"attensor compare --resume {shlex.quote(str(run))} --budget {needed}"
            )
    schedule = Schedule(steps, pilot_steps(plan, steps), makespan(plan, known, steps))
    schedule.save(run / SCHEDULE_FILE)
    return schedule


def pilot_steps(plan: Plan, steps: int) -> int:
    """Steps after which learning rates are compared: a part of the run, all rates having been at their peak a while."""
    return max(1, min(steps - 1, max(math.ceil(plan.pilot_fraction * steps), 2 * WARM_UP)))


def expected_seconds(plan: Plan, known: Mapping[str, Pace], steps: int) -> dict[str, float]:
    """Time for all training of each mechanism on the machine as it was.

    The best pilot is the beginning of the first seed; one more is counted for a grid that has to grow.
    """
    load = statistics.median(pace.machine_load for pace in known.values())
    pilots = len(plan.learning_rates) if len(plan.learning_rates) > 1 else 0
    in_all = len(plan.seeds) * steps + pilots * pilot_steps(plan, steps)
    evaluations = len(plan.seeds) + pilots * _EVALUATIONS_OF_PILOT
    return {
        name: load * (in_all * pace.seconds_per_step + evaluations * pace.evaluation_seconds)
        for name, pace in known.items()
    }


def makespan(plan: Plan, known: Mapping[str, Pace], steps: int) -> float:
    """Seconds until all are trained, `plan.jobs` at a time, the longest first."""
    ends = [0.0] * plan.jobs
    for seconds in sorted(expected_seconds(plan, known, steps).values(), reverse=True):
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _most_steps(plan: Plan, known: Mapping[str, Pace], budget: float) -> int:
    """The most steps that the budget allows, 0 where it allows none."""
    low, high = 0, 1
    while makespan(plan, known, high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if makespan(plan, known, middle) <= budget else (low, middle)
    return low


def _seconds_text(seconds: float) -> str:
    """As `--budget` takes it, rounded up with a reserve for what another calibration would find."""
    whole = math.ceil(1.1 * seconds)
    return f"{whole}s" if whole < 600 else f"{math.ceil(whole / 60)}m"
