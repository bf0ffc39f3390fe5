"""How good answers about points are: polygons, triangulations and tours, as sequences of places.

Answers hold places from 1 on and end at the first 0; what is not one (padding) does not count.
Source: arXiv:1506.03134, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_float, checked

__all__ = [
    "answer_scores",
    "is_simple",
    "is_tour",
    "places_of",
    "polygon_area",
    "ring_length",
    "same_ring",
    "triangles_of",
]

# more polygons than this that cross themselves: an area says nothing
MOST_CROSSING = 0.01


@checked
def places_of(answer: Sequence[int]) -> list[int]:
    """The places before the first end symbol, without the first one's repetition at the end."""
    places = []
    for place in answer:
        if place <= 0:
            break
        places.append(int(place))
    return places[:-1] if len(places) > 1 and places[-1] == places[0] else places


@checked
def polygon_area(corners: Tensor) -> float:
    """Signed area of a polygon [k, 2] by the shoelace formula: above 0 counter-clockwise."""
    _check_corners("polygon_area", corners)
    x, y = corners.double().unbind(-1)
    return float((x * y.roll(-1) - x.roll(-1) * y).sum() / 2)


@checked
def ring_length(corners: Tensor) -> float:
    """Length of the closed line through [k, 2]."""
    _check_corners("ring_length", corners)
    corners = corners.double()
    return float((corners - corners.roll(-1, 0)).norm(dim=-1).sum())


@checked
def is_simple(corners: Tensor) -> bool:
    """Whether the edges of a polygon [k, 2] meet only at its corners, one after the other; O(k^2)."""
    _check_corners("is_simple", corners)
    count = len(corners)
    if count < 3:
        return False
    start = corners.double()
    stop = start.roll(-1, 0)
    first, second = torch.triu_indices(count, count, 1)
    is_next = (second - first == 1) | (second - first == count - 1)
    if bool((start[first] == start[second]).all(-1).any()):
        return False
    a, b, c, d = start[first], stop[first], start[second], stop[second]
    crosses = (_side(a, b, c) * _side(a, b, d) <= 0) & (_side(c, d, a) * _side(c, d, b) <= 0)
    # neighbours share a corner, and overlap only where one turns back on the other
    turns_back = _turns_back(a, b, c, d)
    meets = torch.where(is_next, turns_back, crosses & _boxes_meet(a, b, c, d))
    return not bool(meets.any())


def _check_corners(name: str, corners: Tensor, argument: str = "corners") -> None:
    check_float(name, argument, corners, corners, "itself")
    if corners.ndim != 2 or corners.shape[1] != 2 or corners.is_meta:
        raise ShapeError(
            f"{name}: {argument} must be [k, 2] with numbers, got {list(corners.shape)} on {corners.device}; give "
            "points of the plane."
        )


def _side(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """1 left of the line from a to b, -1 right of it, 0 on it."""
    u, v = b - a, c - a
    return torch.sign(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])


def _turns_back(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Of two edges that share a corner: whether they lie on one line, on the same side of it."""
    shares_end = (b == c).all(-1)
    corner, one, other = (torch.where(shares_end[:, None], x, y) for x, y in ((b, a), (a, b), (d, c)))
    is_flat = _side(corner, one, other) == 0
    return is_flat & (((one - corner) * (other - corner)).sum(-1) > 0)


def _boxes_meet(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    low, high = (
        torch.maximum(torch.minimum(a, b), torch.minimum(c, d)),
        torch.minimum(torch.maximum(a, b), torch.maximum(c, d)),
    )
    return (low <= high).all(-1)


@checked
def same_ring(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether two polygons have the same corners in the same order, from any of them on, in either direction."""
    return _canonical(found) == _canonical(wanted)


def _canonical(ring: Sequence[int]) -> list[int]:
    if not ring:
        return []
    start = min(range(len(ring)), key=ring.__getitem__)
    turned = [*ring[start:], *ring[:start]]
    return min(turned, [turned[0], *turned[:0:-1]])


@checked
def triangles_of(answer: Sequence[int]) -> set[tuple[int, ...]]:
    """Whole triples of different places, as a set; the order of places and of triangles does not count."""
    places = []
    for place in answer:
        if place <= 0:
            break
        places.append(int(place))
    triples = zip(*[iter(places)] * 3)
    return {tuple(sorted(triple)) for triple in triples if len(set(triple)) == 3}


@checked
def is_tour(answer: Sequence[int], count: int) -> bool:
    """Whether it visits every place from 1 to `count` once."""
    return sorted(places_of(answer)) == list(range(1, count + 1))


@checked
def answer_scores(
    task: str, points: Sequence[Tensor], answers: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Means over all sets of points.

    Args:
        task: `"hull"`, `"tsp"` or `"delaunay"`.
        points: [n, 2] each.
        answers, targets: what was found, and what is right.
    Returns:
        hull: `accuracy`, the share of the same polygons; `simple`, the share that do not cross themselves; `area`, the
        mean share of the true area over those; NaN where more than 1 % cross themselves.
        delaunay: `accuracy`, the share of the same sets of triangles; `coverage`, of true triangles that were found.
        tsp: `valid`, the share that are tours; `length` and `gap` over those: the mean, and how far it is above the
        mean of the right ones (0.02: 2 %); NaN where there is none.
    Raises:
        ValueError: an unknown task, or not as many answers and targets as points.
    """
    scores = {"hull": _hull, "tsp": _tsp, "delaunay": _delaunay}.get(task)
    if scores is None:
        raise ValueError(f"answer_scores: task must be 'hull', 'tsp' or 'delaunay', got {task!r}.")
    if not len(points) == len(answers) == len(targets):
        raise ValueError(
            f"answer_scores: points, answers and targets must be equally many, got {len(points)}, {len(answers)} and "
            f"{len(targets)}; give one of each for every set."
        )
    for one in points:
        _check_corners("answer_scores", one, "points")
    return scores(points, answers, targets)


def _hull(points: Any, answers: Any, targets: Any) -> dict[str, float]:
    right, areas = 0, []
    for one, answer, target in zip(points, answers, targets, strict=True):
        found, wanted = places_of(answer), places_of(target)
        right += same_ring(found, wanted)
        corners = one[[place - 1 for place in found]]
        if is_simple(corners):
            areas.append(abs(polygon_area(corners)) / abs(polygon_area(one[[place - 1 for place in wanted]])))
    simple = len(areas) / len(points)
    area = _mean(areas) if simple >= 1 - MOST_CROSSING else math.nan
    return {"accuracy": right / len(points), "area": area, "simple": simple}


def _delaunay(points: Any, answers: Any, targets: Any) -> dict[str, float]:
    found, wanted = [triangles_of(one) for one in answers], [triangles_of(one) for one in targets]
    covered = [len(a & b) / len(b) for a, b in zip(found, wanted, strict=True)]
    return {"accuracy": _mean([a == b for a, b in zip(found, wanted)]), "coverage": _mean(covered)}


def _tsp(points: Any, answers: Any, targets: Any) -> dict[str, float]:
    lengths, best = [], []
    for one, answer, target in zip(points, answers, targets, strict=True):
        if is_tour(answer, len(one)):
            lengths.append(ring_length(one[[place - 1 for place in places_of(answer)]]))
            best.append(ring_length(one[[place - 1 for place in places_of(target)]]))
    length = _mean(lengths)
    gap = length / _mean(best) - 1 if lengths else math.nan
    return {"valid": len(lengths) / len(points), "length": length, "gap": gap}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
