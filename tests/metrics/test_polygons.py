"""Scores of answers about points, against shapely where it is installed and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from attensor.metrics.polygons import (
    answer_scores,
    is_simple,
    is_tour,
    places_of,
    polygon_area,
    ring_length,
    same_ring,
    triangles_of,
)

SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])


def test_polygons_are_those_of_shapely() -> None:
    geometry = pytest.importorskip("shapely.geometry", reason="shapely, of the extra dev, is not installed")
    generator = torch.Generator().manual_seed(0)
    simple = 0
    for count in (3, 4, 5, 6, 8) * 60:
        # few places, so that corners meet, lie on edges and on lines
        corners = torch.randint(0, 7, (count, 2), generator=generator).double()
        if bool((corners == corners.roll(-1, 0)).all(-1).any()):
            continue  # two corners in one place are none of ours; shapely takes them for one
        polygon = geometry.Polygon(corners.tolist())
        ring = geometry.LinearRing(corners.tolist())
        assert is_simple(corners) == (ring.is_simple and polygon.area > 0), corners
        simple += is_simple(corners)
        if ring.is_simple:
            assert abs(polygon_area(corners)) == pytest.approx(polygon.area)
        assert ring_length(corners) == pytest.approx(ring.length)
    assert simple > 60


def test_rings_and_places() -> None:
    assert places_of([2, 3, 5, 2, 0, 4]) == [2, 3, 5]
    assert places_of([2, 3, 5, 0, -100]) == [2, 3, 5]
    assert same_ring([2, 3, 5], [5, 2, 3])
    assert same_ring([2, 3, 5, 4], [4, 5, 3, 2])
    assert not same_ring([2, 3, 5, 4], [2, 5, 3, 4])
    assert triangles_of([3, 1, 2, 4, 4, 5, 1, 2, 0]) == {(1, 2, 3)}
    assert is_tour([2, 1, 3, 2, 0], 3)
    assert not is_tour([2, 1, 2, 0], 3)


def test_scores_of_hulls() -> None:
    target = [1, 2, 3, 4, 1, 0]
    answers = [[4, 1, 2, 3, 4, 0], [1, 2, 3, 1, 0]]
    found = answer_scores("hull", [SQUARE] * 2, answers, [target] * 2)
    assert found == {"accuracy": 0.5, "area": 0.75, "simple": 1.0}
    crossing = answer_scores("hull", [SQUARE] * 2, [[1, 3, 2, 4, 1, 0], target], [target] * 2)
    assert crossing["simple"] == 0.5
    assert math.isnan(crossing["area"])


def test_scores_of_triangulations_and_tours() -> None:
    target = [1, 2, 5, 2, 3, 5, 3, 4, 5, 1, 4, 5, 0]
    found = answer_scores("delaunay", [SQUARE] * 2, [[*target], [5, 2, 1, 1, 2, 3, 0]], [target] * 2)
    assert found == {"accuracy": 0.5, "coverage": 0.625}
    four = SQUARE[:4]
    tours = answer_scores("tsp", [four] * 2, [[1, 2, 4, 3, 1, 0], [1, 2, 1, 0]], [[1, 2, 3, 4, 1, 0]] * 2)
    assert tours["valid"] == 0.5
    assert tours["length"] == pytest.approx(2 + 2 * 2**0.5)
    assert tours["gap"] == pytest.approx((2 + 2 * 2**0.5) / 4 - 1)
    with pytest.raises(ValueError, match="task must be"):
        answer_scores("knapsack", [], [], [])
