"""Hits among the first answers, against a sort."""

from __future__ import annotations

import torch

from attensor.metrics.classification import top_hits


def test_hits_are_those_of_a_sort():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(211, 7, generator=generator)
    labels = torch.randint(7, (211,), generator=generator)
    order = logits.argsort(1, descending=True)
    expected = [int((order[:, :k] == labels[:, None]).any(1).sum()) for k in (1, 3, 5, 7)]
    assert top_hits(logits, labels, (1, 3, 5, 7)).tolist() == expected


def test_a_model_that_says_nothing_hits_nothing():
    labels = torch.tensor([0, 1, 2])
    assert top_hits(torch.zeros(3, 9), labels).tolist() == [0, 0]
    assert top_hits(torch.full((3, 9), torch.nan), labels).tolist() == [0, 0]
    one = torch.zeros(3, 9)
    one[:, 4] = torch.nan
    one[range(3), labels] = 1.0
    assert top_hits(one, labels, (1, 2)).tolist() == [0, 3]


def test_fewer_classes_than_answers():
    assert top_hits(torch.tensor([[0.1, 0.2]]), torch.tensor([0])).tolist() == [0, 1]
