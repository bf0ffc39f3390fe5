"""A trained pointer network's answer to a user's points, beside a solver's: how good it is, and how long both take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attensor.data.points import Task, best_answer, label, left_to_right
from attensor.data.tours import MOST_EXACT
from attensor.errors import DataError, require
from attensor.metrics.polygons import (
    is_simple,
    is_tour,
    places_of,
    polygon_area,
    ring_length,
    same_ring,
    triangles_of,
)
from attensor.models.pointing.pointing import Pointing

__all__ = ["Solution", "solve_points"]

Array = np.ndarray[Any, Any]
SOLVERS = {"hull": "scipy, exact", "delaunay": "scipy, exact"}


@dataclass(frozen=True)
class Solution:
    """Two answers to the same points.

    Attributes:
        task: what was asked.
        points: [n, 2], different ones, in the unit square, in the order in which the model reads them.
        rows: of each, its place among the user's points, from 1 on.
        found, best: places from 1 on: the corners of a ring, or of triangles three by three.
        solver: who gave the best one.
        seconds: of the model and of the solver.
        measures: name -> (the model's, the solver's).
        verdict: how the model's answer compares, in one sentence.
        notes: what a reader must know beside it.
    """

    task: Task
    points: Array
    rows: list[int]
    found: list[int]
    best: list[int]
    solver: str
    seconds: tuple[float, float]
    measures: dict[str, tuple[str, str]]
    verdict: str
    notes: list[str]


def solve_points(
    task: Task, points: Array, model: Pointing, *, trained: list[int] | None = None, width: int = 3
) -> Solution:
    """Ask the model and a solver.

    Args:
        task: `"hull"`, `"tsp"` or `"delaunay"`.
        points: [n, 2] as the user has them; moved and scaled into the unit square. Their order is kept, but for
            `"delaunay"`, which reads them from left to right.
        model: trained on this task.
        trained: numbers of points that it was trained on, for a note.
        width: beams.
    Raises:
        DataError: fewer than three different points, all of them on one line where a polygon is asked for, or so far
            apart or near each other that float64 does not hold their distances.
    """
    require("scipy.spatial", purpose=f"attensor solve {task}")  # before the clock runs
    first = np.sort(np.unique(points, axis=0, return_index=True)[1])
    if len(first) < 3:
        raise DataError(f"solve {task}: there are {len(first)} different points; at least 3 are needed.")
    if task == "delaunay":
        first = first[left_to_right(points[first])]  # as in training
    own, scale = _in_the_unit_square(task, points[first])
    began = time.perf_counter()
    best = best_answer(task, own)
    after = time.perf_counter()
    if best is None:
        raise DataError(f"solve {task}: all points lie on one line, and span neither a polygon nor a triangle.")
    answer = model.decode(torch.from_numpy(own).float()[None], width=width, constraint=task).best[0].tolist()
    seconds = time.perf_counter() - after, after - began
    compare = {"hull": _hulls, "tsp": _tours, "delaunay": _triangulations}[task]
    found, right, measures, verdict = compare(torch.from_numpy(own), answer, best, scale)
    solver = SOLVERS.get(task) or ("dynamic programming, exact" if len(own) <= MOST_EXACT else "local search")
    rows, notes = (first + 1).tolist(), _notes(len(points), len(own), trained)
    if task == "delaunay" and label(task, own) is None:
        notes.append(
            "Some points lie on one circle or line: there may be several triangulations, of which the solver's is one."
        )
    return Solution(task, own, rows, found, right, solver, seconds, measures, verdict, notes)


def _in_the_unit_square(task: Task, points: Array) -> tuple[Array, float]:
    """Points [n, 2] moved and scaled into it, and the scale."""
    with np.errstate(over="ignore"):
        own = points - points.min(0)
    scale = float(own.max())
    if not 1e-300 < scale < np.inf:
        raise DataError(
            f"solve {task}: points must be between 1e-300 and 1.8e308 apart, got {scale:.3g}; give them in other units."
        )
    return own / scale, scale


def _notes(given: int, different: int, trained: list[int] | None) -> list[str]:
    """What a reader must know of the numbers of points."""
    notes = []
    if different < given:
        notes.append(f"{given - different} of {given} points are repetitions of others and are left out.")
    if trained and not min(trained) <= different <= max(trained):
        beyond = "more" if different > max(trained) else "fewer"
        notes.append(
            f"{different} points are {beyond} than the {min(trained)} to {max(trained)} that the model was trained on: "
            "expect little of its answer."
        )
    return notes


def _at(points: torch.Tensor, places: list[int]) -> torch.Tensor:
    return points[[place - 1 for place in places]]


def _hulls(points: torch.Tensor, answer: list[int], best: list[int], scale: float) -> tuple[Any, ...]:
    found, right = places_of(answer), places_of(best)
    shares = [abs(polygon_area(_at(points, ring))) / abs(polygon_area(_at(points, right))) for ring in (found, right)]
    if same_ring(found, right):
        verdict = "The model's hull is the right one."
    elif is_simple(_at(points, found)) and shares[0] > 1 - 1e-9:
        verdict = "The model's hull is the right one; it counts points on its edges as corners."
    elif is_simple(_at(points, found)):
        verdict = f"The model's polygon is not the hull; it covers {shares[0]:.1%} of its area."
    else:
        verdict = "The model's polygon crosses or touches itself: it is no hull."
    measures = {
        "corners": (str(len(found)), str(len(right))),
        "share of the hull's area": (f"{shares[0]:.1%}" if is_simple(_at(points, found)) else "-", "100 %"),
    }
    return found, right, measures, verdict


def _tours(points: torch.Tensor, answer: list[int], best: list[int], scale: float) -> tuple[Any, ...]:
    found, right = places_of(answer), places_of(best)
    if not is_tour(answer, len(points)):
        raise DataError("solve tsp: the model gave no tour; --width must be at least 1.")
    lengths = [ring_length(_at(points, ring)) for ring in (found, right)]
    gap, is_exact = lengths[0] / lengths[1] - 1, len(points) <= MOST_EXACT
    if same_ring(found, right) or abs(gap) < 1e-9:
        verdict = "The model's tour is " + ("the shortest." if is_exact else "as short as that of local search.")
    elif is_exact:
        verdict = f"The model's tour is {gap:.1%} longer than the shortest."
    else:
        verdict = f"The model's tour is {abs(gap):.1%} {'longer' if gap > 0 else 'shorter'} than that of local search,"
        verdict += " which is not proven to be the shortest."
    return found, right, {"length": (f"{scale * lengths[0]:.6g}", f"{scale * lengths[1]:.6g}")}, verdict


def _triangulations(points: torch.Tensor, answer: list[int], best: list[int], scale: float) -> tuple[Any, ...]:
    found, right = sorted(triangles_of(answer)), sorted(triangles_of(best))
    share = len(set(found) & set(right)) / len(right)
    verdict = "The model's triangulation is the right one."
    if set(found) != set(right):
        others = len(set(found) - set(right))
        verdict = f"The model has {share:.1%} of the triangles, and {others} other{'s' * (others != 1)}."
    measures = {
        "triangles": (str(len(found)), str(len(right))),
        "of the triangles": (f"{share:.1%}", "100 %"),
    }
    return [place for one in found for place in one], [place for one in right for place in one], measures, verdict
