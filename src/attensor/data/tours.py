"""Shortest round tours: exact by dynamic programming up to 12 cities, and a local search beyond.

A tour is the order of its cities, the first not repeated. Sources: Held and Karp 1962 (the exact one); Croes 1958
(2-opt) and Or 1976 (segments of up to three cities moved elsewhere).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

__all__ = ["MOST_EXACT", "canonical_tour", "exact_tours", "nearest_neighbor_tour", "short_tour", "tour_length"]

MOST_EXACT = 12  # cities; the memory doubles with each
_AT_ONCE = 2**24  # numbers of a table

Array = np.ndarray[Any, Any]


def tour_length(points: Array, tour: Array) -> float:
    """Of the closed tour.

    Args:
        points: [n, 2].
        tour: [n], places from 0 on.
    """
    ordered = np.asarray(points, dtype=np.float64)[tour]
    return float(np.linalg.norm(ordered - np.roll(ordered, -1, 0), axis=-1).sum())


def canonical_tour(tour: Array) -> Array:
    """The same round trip from city 0 on, in the direction whose second city is the lower one.

    A tour and its reverse are the same; without a rule half of the labels contradict the other half.
    """
    tour = np.roll(np.asarray(tour), -int(np.argmin(tour)))
    return np.concatenate([tour[:1], tour[:0:-1]]) if len(tour) > 2 and tour[1] > tour[-1] else tour


def exact_tours(points: Array) -> Array:
    """Shortest tours of many instances.

    Args:
        points: [instances, n, 2], n from 1 to `MOST_EXACT`.
    Returns:
        [instances, n] canonical tours, int64.
    Raises:
        ValueError: more cities.
    Cost: O(2^n n^2) each, all instances together; 12 cities take 4 ms each.
    Source: Held and Karp, "A dynamic programming approach to sequencing problems", 1962.
    """
    count, cities = points.shape[:2]
    if not 1 <= cities <= MOST_EXACT:
        raise ValueError(f"exact_tours: points must have 1 to {MOST_EXACT} cities, got {cities}; use short_tour.")
    if cities < 4:
        return np.tile(np.arange(cities), (count, 1))
    rows = max(1, _AT_ONCE // (2 ** (cities - 1) * (cities - 1)))
    parts = [_exact(points[start : start + rows].astype(np.float64)) for start in range(0, count, rows)]
    return np.concatenate(parts) if parts else np.zeros((0, cities), dtype=np.int64)


@functools.cache
def _subsets(others: int) -> list[list[tuple[Array, Array]]]:
    """By size and last city: the sets of other cities that have it, and the same without it."""
    every = np.arange(2**others)
    sizes = sum((every >> bit) & 1 for bit in range(others))
    found = []
    for size in range(2, others + 1):
        own = [every[(sizes == size) & (every >> last & 1 == 1)] for last in range(others)]
        found.append([(sets, sets ^ (1 << last)) for last, sets in enumerate(own)])
    return found


def _exact(points: Array) -> Array:
    count, cities, _ = points.shape
    others = cities - 1
    distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    between = distances[:, 1:, 1:]
    best = np.full((count, 2**others, others), np.inf)  # from city 0 through a set to its last city
    for last in range(others):
        best[:, 1 << last, last] = distances[:, 0, last + 1]
    for layer in _subsets(others):
        for last, (sets, before) in enumerate(layer):
            best[:, sets, last] = (best[:, before] + between[:, None, :, last]).min(-1)
    tours = np.zeros((count, cities), dtype=np.int64)
    rows, left = np.arange(count), np.full(count, 2**others - 1)
    last = (best[:, -1] + distances[:, 1:, 0]).argmin(-1)
    for place in range(others, 0, -1):
        tours[:, place] = last + 1
        left = left ^ (1 << last)
        last = (best[rows, left] + between[rows, :, last]).argmin(-1)
    return np.stack([canonical_tour(tour) for tour in tours])


def nearest_neighbor_tour(points: Array, start: int = 0) -> Array:
    """Always on to the nearest city that is left: [n]."""
    points = np.asarray(points, dtype=np.float64)
    left, tour = np.ones(len(points), dtype=bool), [start]
    left[start] = False
    while left.any():
        away = np.where(left, ((points - points[tour[-1]]) ** 2).sum(-1), np.inf)
        tour.append(int(away.argmin()))
        left[tour[-1]] = False
    return np.array(tour)


def short_tour(points: Array, *, starts: int = 5) -> Array:
    """A tour that no exchange of two edges and no move of up to three cities shortens; not proven to be the shortest.

    Args:
        points: [n, 2].
        starts: nearest-neighbour tours that are improved, from cities spread over the order; the best is taken.
    Returns:
        [n], canonical. On random points some 4 % above the shortest at 100 cities.
    Cost: about O(n^3) a start; 500 cities take seconds.
    """
    points = np.asarray(points, dtype=np.float64)
    if len(points) < 4:
        return np.arange(len(points))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    first = np.unique(np.linspace(0, len(points) - 1, starts).astype(int))
    tours = [_improved(nearest_neighbor_tour(points, int(start)), distances) for start in first]
    return canonical_tour(min(tours, key=lambda tour: tour_length(points, tour)))


def _improved(tour: Array, distances: Array) -> Array:
    while True:
        shorter = _two_opt(tour, distances)
        shorter = _or_opt(tour, distances) if shorter is None else shorter
        if shorter is None:
            return tour
        tour = shorter


def _two_opt(tour: Array, distances: Array) -> Array | None:
    """The best exchange of two edges, or None."""
    own, after = distances[np.ix_(tour, tour)], np.roll(tour, -1)
    edges = distances[tour, after]
    # an edge with itself or the next one is no exchange
    change = np.triu(own + distances[np.ix_(after, after)] - edges[:, None] - edges[None], 2)
    first, second = np.unravel_index(change.argmin(), change.shape)
    if change[first, second] >= -1e-12:
        return None
    return np.concatenate([tour[: first + 1], tour[first + 1 : second + 1][::-1], tour[second + 1 :]])


def _or_opt(tour: Array, distances: Array) -> Array | None:
    """The best move of up to three neighbours to another place, either way round, or None."""
    best, found = -1e-12, None
    for size in range(1, min(3, len(tour) - 3) + 1):
        for start in range(len(tour)):
            turned = np.roll(tour, -start)
            segment, rest = turned[:size], turned[size:]
            gain = distances[rest[-1], segment[0]] + distances[segment[-1], rest[0]] - distances[rest[-1], rest[0]]
            edges = distances[rest[:-1], rest[1:]] + gain
            for way in (segment, segment[::-1]):
                change = distances[rest[:-1], way[0]] + distances[way[-1], rest[1:]] - edges
                place = int(change.argmin())
                if change[place] < best:
                    best, found = change[place], (rest[: place + 1], way, rest[place + 1 :])
    return None if found is None else np.concatenate(found)
