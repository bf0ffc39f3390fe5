"""Points and their answers against brute force, scipy's own definitions and other libraries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from attensor.data.points import IGNORED, PointBatches, _labels, draw_instances, label
from attensor.data.tours import canonical_tour, exact_tours, nearest_neighbor_tour, short_tour, tour_length


@pytest.mark.parametrize("size", [3, 5, 8])
def test_exact_tours_are_the_shortest_of_all(size: int) -> None:
    points = np.random.default_rng(size).random((4, size, 2))
    found = exact_tours(points)
    for one, tour in zip(points, found, strict=True):
        best = min(tour_length(one, np.array([0, *order])) for order in itertools.permutations(range(1, size)))
        assert tour_length(one, tour) == pytest.approx(best, abs=1e-12)
        assert tour.tolist() == canonical_tour(tour).tolist()
        assert tour[0] == 0
        assert tour[1] < tour[-1]


def test_canonical_tours_are_one_for_all_rotations_and_directions() -> None:
    tour = np.array([3, 0, 4, 1, 2])
    for turned in (np.roll(tour, k)[::way] for k in range(5) for way in (1, -1)):
        assert canonical_tour(turned).tolist() == [0, 3, 2, 1, 4]


def test_local_search_is_near_the_shortest_and_better_than_the_nearest_city() -> None:
    points = np.random.default_rng(0).random((20, 12, 2))
    exact = sum(tour_length(one, tour) for one, tour in zip(points, exact_tours(points), strict=True))
    found = sum(tour_length(one, short_tour(one)) for one in points)
    nearest = sum(tour_length(one, nearest_neighbor_tour(one)) for one in points)
    assert exact <= found <= 1.02 * exact < nearest
    many = np.random.default_rng(1).random((60, 2))
    assert sorted(short_tour(many).tolist()) == list(range(60))
    assert tour_length(many, short_tour(many)) < 0.9 * tour_length(many, nearest_neighbor_tour(many))


def test_more_cities_than_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 12 cities, got 13"):
        exact_tours(np.zeros((1, 13, 2)))
    with pytest.raises(ValueError, match="size must be 3 to 12"):
        draw_instances("tsp", 1, 13, seed=0)


def test_hulls_hold_all_points_counter_clockwise_from_the_lowest_place() -> None:
    for one, target in zip(*_drawn("hull", 9), strict=True):
        assert target[-1] == 0
        assert target[0] == target[-2] == min(target[:-1])
        corners = one[np.array(target[:-1]) - 1]
        start, stop = corners[:-1], corners[1:]
        for point in one:
            edge, toward = stop - start, point - start
            assert (edge[:, 0] * toward[:, 1] - edge[:, 1] * toward[:, 0] >= -1e-12).all()


def test_triangulations_have_empty_circles_and_go_from_left_to_right() -> None:
    for one, target in zip(*_drawn("delaunay", 7), strict=True):
        assert (np.diff(one[:, 0]) > 0).all()
        triples = np.array(target[:-1]).reshape(-1, 3) - 1
        assert (np.diff(triples) > 0).all()
        assert triples.tolist() == sorted(triples.tolist())
        for triple in triples:
            corners = one[triple]
            lifted = np.column_stack([corners, (corners**2).sum(-1), np.ones(3)])
            turn = np.linalg.det(np.column_stack([corners, np.ones(3)]))
            for other in set(range(7)) - set(triple.tolist()):
                row = [*one[other], (one[other] ** 2).sum(), 1.0]
                assert np.linalg.det(np.vstack([lifted, row])) * turn < 0  # outside of the circle


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_many_triangulations_at_once_are_those_of_scipy(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attensor.data.points._AT_ONCE", 7)
    sets = np.random.default_rng(size).random((40, size, 2))
    sets[3] = np.linspace(0, 1, size)[:, None]  # on one line
    if size > 3:
        sets[5, :4] = [[0, 0], [1, 0], [0, 1], [1, 1]]  # on one circle
        sets[5, 4:] += 2
    found = _labels("delaunay", sets)
    assert found == [label("delaunay", one) for one in sets]
    assert [i for i, answer in enumerate(found) if answer is None] == ([3, 5] if size > 3 else [3])


def _drawn(task, size: int):
    made = draw_instances(task, 12, size, seed=3)
    targets = [[int(place) for place in row if place != IGNORED] for row in made.targets]
    return made.points.double().numpy(), targets


@pytest.mark.parametrize(
    ("task", "points"),
    [
        ("hull", [[0, 0], [1, 1], [2, 2], [3, 3]]),  # on one line
        ("hull", [[0, 0], [2, 0], [1, 0], [1, 1]]),  # one on an edge
        ("hull", [[0, 0], [1, 0], [0, 1], [1, 0]]),  # one twice
        ("delaunay", [[0, 0], [1, 0], [0, 1], [1, 1]]),  # on one circle
        ("delaunay", [[0, 0], [1, 1], [2, 2]]),
        ("delaunay", [[0, 0], [1, 0], [0, 1], [0, 1]]),
        ("tsp", [[0, 0], [1, 0], [0, 1], [0, 1]]),
    ],
)
def test_what_has_no_unique_answer_has_none(task, points) -> None:
    assert label(task, np.array(points, dtype=float)) is None


def test_batches_are_a_function_of_their_number() -> None:
    options = {"instances": 20, "batch_size": 6, "seed": 4}
    first, second = (PointBatches("hull", (5, 7), **options) for _ in range(2))
    sizes = set()
    for number in (9, 0, 3, 5):
        a, b = first(number), second(number)
        assert torch.equal(a.points, b.points)
        assert torch.equal(a.targets, b.targets)
        assert (a.targets != IGNORED).any(0).all()
        sizes.add(a.points.shape[1])
    assert sizes == {5, 7}
    assert not torch.equal(first(0).points[0, 0], first(9).points[0, 0])


def test_shuffled_triangles_are_the_same_triangles() -> None:
    options = {"instances": 30, "batch_size": 30, "seed": 4}
    right, shuffled = (PointBatches("delaunay", (6,), shuffled=way, **options)(0) for way in (False, True))
    moved = 0
    for a, b in zip(right.targets.tolist(), shuffled.targets.tolist(), strict=True):
        both = [[tuple(row[i : i + 3]) for i in range(0, row.index(0), 3)] for row in (a, b)]
        assert sorted(both[0]) == sorted(both[1])
        moved += both[0] != both[1]
        assert a.index(0) == b.index(0)
    assert moved > 20
