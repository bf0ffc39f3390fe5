"""Metrics of paths of gaze against their definitions written out; multimatch against the published package."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from attensor.metrics.scanpath import behaviour, delta, edit_distance, multimatch, sequence_score, true_probability

RECORDED = [
    ((4, 5), (0.8223446215591317, 0.7833694626074456, 0.7524919177658617, 0.6822335107851581)),
    ((3, 3), (0.7591135969617958, 0.3102714219243218, 0.8802670416536205, 0.6499284429859795)),
    ((8, 5), (0.7388149584628931, 0.6502238561845952, 0.8455889416540817, 0.5703537612808718)),
    ((7, 12), (0.798723635005715, 0.8332638377945085, 0.7550628060377254, 0.810542232581184)),
    ((10, 10), (0.8158438285049324, 0.5708501143608834, 0.7911902255700348, 0.6933156223691719)),
]


def drawn(count: int, seed: int) -> list[list[int]]:
    random.seed(seed)
    return [[random.randrange(5) for _ in range(random.randrange(1, 9))] for _ in range(count)]


def padded(paths: list[list[int]]) -> Tensor:
    longest = max(map(len, paths))
    return torch.tensor([path + [-1] * (longest - len(path)) for path in paths])


def common(one: list[int], two: list[int]) -> int:
    """Longest common subsequence, by its recursion."""
    if not one or not two:
        return 0
    if one[-1] == two[-1]:
        return common(one[:-1], two[:-1]) + 1
    return max(common(one[:-1], two), common(one, two[:-1]))


def distance(one: list[int], two: list[int]) -> int:
    if not one or not two:
        return len(one) + len(two)
    same = distance(one[:-1], two[:-1]) + (one[-1] != two[-1])
    return min(same, distance(one[:-1], two) + 1, distance(one, two[:-1]) + 1)


def test_alignments() -> None:
    one, two = drawn(60, 0), drawn(60, 1)
    scores, distances = sequence_score(padded(one), padded(two)), edit_distance(padded(one), padded(two))
    assert scores.tolist() == [common(a, b) / max(len(a), len(b)) for a, b in zip(one, two, strict=True)]
    assert distances.tolist() == [distance(a, b) for a, b in zip(one, two, strict=True)]


def test_behaviour() -> None:
    """search a b, refixation b, revisit a, search c, refixation c, revisit b: by hand."""
    found = behaviour(torch.tensor([[0, 1, 1, 0, 2, 2, 1], [3, -1, -1, -1, -1, -1, -1]]), torch.tensor([1, 2]))
    torch.testing.assert_close(found[0], torch.tensor([1, 7, 3 / 7, 2 / 7, 2 / 7]).double())
    assert found[1].tolist() == [0, 1, 1, 0, 0]


def test_delta() -> None:
    people, model = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 2, -1]])
    target, other = torch.tensor([0]), torch.tensor([2])
    # ends at the target 1 and 1, length 3 of 4, search 1 of 1/2, refixation 0 of 1/4, revisit 0 of 1/4
    assert delta(model, other, people, target) == pytest.approx((0 + 1 / 4 + 1 + 1 + 1) / 5)
    assert delta(people, target, people, target) == 0


def test_multimatch() -> None:
    """Recorded from multimatch-gaze 0.1.3, `docomparison` without grouping, on a screen of 90 x 60."""
    torch.manual_seed(0)
    for lengths, expected in RECORDED:
        one, two = (torch.rand(count, 2, dtype=torch.float64) * torch.tensor([90.0, 60.0]) for count in lengths)
        assert multimatch(one, two, width=90, height=60) == pytest.approx(expected, abs=1e-12)


def test_true_probability() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, torch.inf]]])
    logits[0, 1, 1] = 50.0
    assert true_probability(logits, torch.tensor([[0, 1]])) == pytest.approx(0.75)
    assert true_probability(logits, torch.tensor([[0, -100]])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sequence_score(torch.zeros(2, 3), torch.zeros(2, 3).long()), "paths must be"),
        (lambda: edit_distance(torch.zeros(2, 3).long(), torch.zeros(3, 3).long()), "must be pairs"),
        (lambda: sequence_score(torch.tensor([[-1, 2]]), torch.tensor([[1, 2]])), "behind the end alone"),
        (lambda: behaviour(torch.tensor([[-1, -1]]), torch.tensor([1])), "must have a fixation"),
        (lambda: behaviour(torch.tensor([[1, -1]]), torch.tensor([1, 2])), "target must be"),
        (lambda: multimatch(torch.rand(2, 2), torch.rand(5, 2), width=1, height=1), "at least 3 fixations"),
        (lambda: multimatch(torch.rand(4, 2), torch.rand(5, 2), width=0, height=1), "above 0"),
    ],
)
def test_refuses(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()  # type: ignore[operator]
