"""Points in the plane with what is asked of them, as sequences of places: convex hulls, triangulations, round tours.

    targets: places from 1 on in their order, 0 at the end, `IGNORED` as padding

    hull       counter-clockwise from the lowest place on, closed by the first again
    tsp        from place 1 on in the direction of the lower second place, closed by 1 again
    delaunay   points from left to right; triples in ascending order, triangles by their first, second, third corner

A fixed order matters: of two labels for the same answer a model learns neither. The paper has triangles by their
incentres among points in any order, and leaves a better one open; the sweep from left to right takes far fewer steps.
Source: arXiv:1506.03134, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attensor.data.files import generator
from attensor.data.mqar import IGNORED
from attensor.data.tours import MOST_EXACT, exact_tours, short_tour
from attensor.errors import require

__all__ = [
    "IGNORED",
    "TASKS",
    "Instances",
    "PointBatches",
    "Task",
    "best_answer",
    "draw_instances",
    "label",
    "left_to_right",
    "padded",
]

Task = Literal["hull", "tsp", "delaunay"]
TASKS: tuple[Task, ...] = ("hull", "tsp", "delaunay")
_APART = 1e-9  # from a line or another point
_MOST_CHECKED = 8  # points whose triples are checked one by one, which beyond takes longer than scipy
_AT_ONCE = 4096  # sets that are checked together

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Instances:
    """Sets of points with their answers.

    Attributes:
        points: [N, n, 2], float32; zeros behind the `counts`.
        targets: [N, m], int64.
        counts: [N], points of each.
    """

    points: Tensor
    targets: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def rows(self, index: Tensor) -> Instances:
        """Some of them, without the padding that none of them needs."""
        counts, targets = self.counts[index], self.targets[index]
        longest = int((targets != IGNORED).sum(-1).max()) if len(targets) else 0
        return Instances(self.points[index][:, : int(counts.max())], targets[:, :longest], counts)


def left_to_right(points: Array) -> Array:
    """Places [.., n] of points [.., n, 2] by their x, those with the same x in the order given: of triangulations."""
    return np.argsort(points[..., 0], axis=-1, kind="stable")


def label(task: Task, points: Array) -> list[int] | None:
    """The answer for one set of points [n, 2] in general position; None where it is not unique.

    Points are taken in the order given.

    Raises:
        ValueError: fewer than three points, or more than the exact tours take.
        MissingExtraError: scipy is not installed.
    """
    if len(points) < 3:
        raise ValueError(f"label: points must be at least 3, got {len(points)}.")
    points = np.asarray(points, dtype=np.float64)
    if task == "tsp":
        return _tours(points[None])[0]
    return _hull(points) if task == "hull" else _delaunay(points)


def _labels(task: Task, points: Array) -> list[list[int] | None]:
    """As `label`, of many sets [N, n, 2] at once where that is faster."""
    if task == "tsp":
        return _tours(points)
    if task == "delaunay" and points.shape[1] <= _MOST_CHECKED:
        parts = [_triangulations(points[i : i + _AT_ONCE]) for i in range(0, len(points), _AT_ONCE)]
        return [answer for part in parts for answer in part]
    return [label(task, one) for one in points]


def _tours(points: Array) -> list[list[int] | None]:
    apart = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1) + np.eye(points.shape[1])
    tours = (exact_tours(points) + 1).tolist()
    return [[*tour, 1, 0] if near > _APART else None for tour, near in zip(tours, apart.min((1, 2)))]


def _hull(points: Array) -> list[int] | None:
    hull = _qhull("ConvexHull", points)
    if hull is None:
        return None
    inside = np.ones(len(points), dtype=bool)
    inside[hull.vertices] = False
    if (points[inside] @ hull.equations[:, :2].T + hull.equations[:, 2] > -_APART).any():
        return None
    return _as_hull(hull.vertices)


def _as_hull(vertices: Array) -> list[int]:
    first: list[int] = (np.roll(vertices, -int(vertices.argmin())) + 1).tolist()
    return [*first, first[0], 0]


def _delaunay(points: Array) -> list[int] | None:
    found, hull = _qhull("Delaunay", points), _qhull("ConvexHull", points)
    if found is None or hull is None:
        return None
    if len(found.simplices) != 2 * len(points) - 2 - len(hull.vertices) or _is_cocircular(points, found.simplices):
        return None
    return _as_triples(found.simplices)


def _as_triples(triples: Array) -> list[int]:
    ordered: list[list[int]] = sorted((np.sort(triples, -1) + 1).tolist())
    return [*(place for one in ordered for place in one), 0]


def _triangulations(points: Array) -> list[list[int] | None]:
    """Of many sets [N, n, 2] by the definition: no other point lies in the circle of a triangle. O(n^4) each."""
    size = points.shape[1]
    triples = np.array(list(combinations(range(size), 3)))  # in the order of answers
    corners = points[:, triples]
    x, y = np.moveaxis(corners[:, :, None] - points[:, None, :, None], -1, 0)  # from each point: [N, triples, n, 3]
    minors = np.roll(x, -1, -1) * np.roll(y, -2, -1) - np.roll(x, -2, -1) * np.roll(y, -1, -1)
    sides = corners[:, :, 1:] - corners[:, :, :1]
    turn = np.linalg.det(sides)
    inside = ((x**2 + y**2) * minors).sum(-1) * np.sign(turn)[..., None]  # above 0 in the circle, 0 on it
    inside[:, (triples[:, :, None] == np.arange(size)).any(1)] = -np.inf
    highest = inside.max(-1)
    found, is_unique = highest < -_APART, ((abs(highest) > _APART) & (abs(turn) > _APART)).all(-1)
    return [_as_triples(triples[one]) if sure else None for one, sure in zip(found, is_unique, strict=True)]


def _qhull(what: str, points: Array) -> Any:
    """scipy's answer, None where all points lie on one line."""
    spatial = require("scipy.spatial", purpose="convex hulls and triangulations")
    try:
        return getattr(spatial, what)(points)
    except spatial.QhullError:
        return None


def best_answer(task: Task, points: Array) -> list[int] | None:
    """The answer of a solver for different points [n, 2], n >= 3, in any position.

    Returns:
        scipy's hull or triangulation, one of several where four points lie on a circle; the exact tour up to 12 cities,
        beyond a short one. None where all points lie on one line and there is no polygon.
    """
    if task == "tsp":
        exact = len(points) <= MOST_EXACT
        tour = exact_tours(points[None])[0] if exact else short_tour(points, starts=max(1, min(5, 400 // len(points))))
        return [*(tour + 1).tolist(), 1, 0]
    found = _qhull("ConvexHull" if task == "hull" else "Delaunay", points)
    if found is None:
        return None
    return _as_hull(found.vertices) if task == "hull" else _as_triples(found.simplices)


def _is_cocircular(points: Array, triples: Array) -> bool:
    """Whether a fourth point lies on the circle of a triangle."""
    a, b, c = (points[triples[:, i]] for i in range(3))
    twice = 2 * np.linalg.det(np.stack([b - a, c - a], -1))
    of_b, of_c = ((b - a) ** 2).sum(-1), ((c - a) ** 2).sum(-1)
    x = ((c - a)[:, 1] * of_b - (b - a)[:, 1] * of_c) / twice
    y = ((b - a)[:, 0] * of_c - (c - a)[:, 0] * of_b) / twice
    center = a + np.stack([x, y], -1)
    away = np.linalg.norm(points[None] - center[:, None], axis=-1)
    on = np.abs(away - np.linalg.norm(a - center, axis=-1)[:, None]) < _APART
    return bool((on.sum(-1) > 3).any())


def padded(points: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> Instances:
    """Sets of several sizes as one batch."""
    pad = torch.nn.utils.rnn.pad_sequence
    targets = [torch.tensor(answer, dtype=torch.int64) for answer in answers]
    counts = torch.tensor([len(one) for one in points])
    return Instances(pad(list(points), True), pad(targets, True, IGNORED), counts)


def draw_instances(task: Task, count: int, size: int, *, seed: int, stream: int = 0) -> Instances:
    """Uniform points of the unit square with their answers; what has no unique one is drawn again.

    Points lie as they were drawn, from left to right for `"delaunay"`.

    Args:
        task: `"hull"`, `"tsp"` or `"delaunay"`.
        count: sets N.
        size: points n of each, 3 or more; up to 12 for `"tsp"`, which is solved exactly.
        seed: of the points.
        stream: another number, other points: 0 for training, below 0 for what is held out.
    Raises:
        ValueError: a size out of range.
    Cost: an instance takes 0.3 ms, triangulations of 5 points 0.03 ms, tours of 12 cities 4 ms.
    """
    if size < 3 or (task == "tsp" and size > MOST_EXACT):
        most = f" to {MOST_EXACT}, because tours are solved exactly" if task == "tsp" else " or more"
        raise ValueError(f"draw_instances: size must be 3{most}, got {size}.")
    random = generator(seed, stream * 1000 + size)
    points: list[Tensor] = []
    answers: list[list[int]] = []
    while len(points) < count:
        drawn = torch.rand(count - len(points), size, 2, generator=random)
        if task == "delaunay":
            order = torch.from_numpy(left_to_right(drawn.numpy()))
            drawn = drawn.gather(1, order[..., None].expand(-1, -1, 2))
        found = _labels(task, drawn.double().numpy())
        kept = [(one, answer) for one, answer in zip(drawn, found, strict=True) if answer is not None]
        points += [one for one, _ in kept]
        answers += [answer for _, answer in kept]
    return padded(points, answers)


class PointBatches:
    """Batches of one size each, a pure function of their number.

    Args:
        task: what is asked.
        sizes: numbers of points, drawn evenly.
        instances: sets of each size, made once.
        batch_size: sets of a batch.
        seed: of all.
        shuffled: triangles in no order, to show what the order is worth.
    """

    def __init__(
        self,
        task: Task,
        sizes: Sequence[int],
        *,
        instances: int,
        batch_size: int,
        seed: int,
        shuffled: bool = False,
    ) -> None:
        self._made = [draw_instances(task, instances, size, seed=seed) for size in sizes]
        self._batch_size, self._seed = batch_size, seed
        if shuffled:
            self._made = [_without_order(made, generator(seed, -1)) for made in self._made]

    def __call__(self, number: int) -> Instances:
        """The batch of that number."""
        random = generator(self._seed, number)
        made = self._made[int(torch.randint(len(self._made), (), generator=random))]
        return made.rows(torch.randint(len(made), (self._batch_size,), generator=random))


def _without_order(made: Instances, random: torch.Generator) -> Instances:
    targets = made.targets.clone()
    for row in targets:
        triangles = int((row > 0).sum()) // 3
        order = torch.randperm(triangles, generator=random)
        row[: 3 * triangles] = row[: 3 * triangles].view(-1, 3)[order].flatten()
    return Instances(made.points, targets, made.counts)
