"""Rankings against sorting by hand, all orders of equals, and scikit-learn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from attensor.metrics.retrieval import (
    average_precision,
    cumulative_matches,
    first_ranks,
    hits_at,
    mean_average_precision,
    mean_reciprocal_rank,
    ranks,
)


def problem(queries: int = 23, candidates: int = 7, *, levels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with many ties, right candidates (none for some queries), candidates to ignore."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(levels, (queries, candidates), generator=generator).double() - 1.5
    relevant = torch.rand(queries, candidates, generator=generator) < 0.5
    ignore = torch.rand(queries, candidates, generator=generator) < 0.25
    return scores, relevant, ignore


def first_places(scores: list[float], relevant: list[bool], ignore: list[bool]) -> list[int]:
    """Rank of the first right candidate in every order that sorts the scores."""
    kept = [(score, right) for score, right, out in zip(scores, relevant, ignore) if not out]
    orders = (
        order for order in itertools.permutations(kept) if all(a[0] >= b[0] for a, b in itertools.pairwise(order))
    )
    return [next((place for place, (_, right) in enumerate(order, 1) if right), 0) for order in orders]


@pytest.mark.parametrize(("ties", "summary"), [("optimistic", min), ("pessimistic", max), ("mean", None)])
def test_first_ranks_over_all_orders_of_equals(ties, summary) -> None:
    scores, relevant, ignore = problem()
    actual = first_ranks(scores, relevant, filter=ignore, ties=ties, chunk_size=5)
    for row, rank in enumerate(actual.tolist()):
        places = first_places(scores[row].tolist(), relevant[row].tolist(), ignore[row].tolist())
        if not bool((relevant & ~ignore)[row].any()):
            assert rank == math.inf
        else:
            expected = summary(places) if summary else sum(places) / len(places)
            assert rank == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ties", ["optimistic", "pessimistic", "mean"])
def test_ranks_of_one_target_with_other_answers_filtered(ties) -> None:
    """The target counts even where the filter names it."""
    scores, _, ignore = problem()
    target = torch.arange(23) % 7
    ignore[torch.arange(23), target] = True
    actual = ranks(scores, target, filter=ignore, ties=ties, chunk_size=4)
    for row, rank in enumerate(actual.tolist()):
        own = scores[row, target[row]]
        others = [scores[row, j] for j in range(7) if not ignore[row, j]]
        above, equal = sum(bool(s > own) for s in others), sum(bool(s == own) for s in others)
        assert rank == 1 + above + equal * {"optimistic": 0, "pessimistic": 1, "mean": 0.5}[ties]


def test_infinite_scores_are_scores() -> None:
    scores = torch.tensor([[-math.inf, 1.0, -math.inf, math.inf]])
    assert ranks(scores, torch.tensor([0]), ties="pessimistic").item() == 4
    assert ranks(scores, torch.tensor([0]), ties="optimistic").item() == 3
    relevant, ignore = torch.tensor([[True, False, False, True]]), torch.tensor([[False, True, False, False]])
    assert average_precision(scores, relevant, filter=ignore).item() == pytest.approx((1 + 2 / 3) / 2)


def test_average_precision_by_hand() -> None:
    """Right ones at places 1 and 4 of four; then the same with two equals; then without the second."""
    scores = torch.tensor([[9.0, 8.0, 7.0, 6.0], [9.0, 9.0, 7.0, 6.0], [9.0, 8.0, 7.0, 6.0]])
    relevant = torch.tensor([[True, False, False, True]]).expand(3, 4)
    ignore = torch.tensor([[False] * 4, [False] * 4, [False, True, False, False]])
    expected = [(1 + 2 / 4) / 2, (1 / 2 + 2 / 4) / 2, (1 + 2 / 3) / 2]
    assert average_precision(scores, relevant, filter=ignore).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_average_precision_is_that_of_scikit_learn(dtype) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, relevant, ignore = problem(queries=40, candidates=61, levels=17)
    relevant[7] = False
    actual = average_precision(scores.to(dtype), relevant, filter=ignore, chunk_size=9)
    expected = []
    for row in range(40):
        kept = ~ignore[row]
        right, values = relevant[row, kept].numpy(), scores[row, kept].numpy()
        expected.append(metrics.average_precision_score(right, values) if right.any() else math.nan)
    assert actual.tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    known = [value for value in expected if not math.isnan(value)]
    assert mean_average_precision(scores, relevant, filter=ignore) == pytest.approx(sum(known) / len(known))


def test_summaries_of_ranks() -> None:
    some = torch.tensor([1.0, 2.5, math.inf, 4.0], dtype=torch.float64)
    assert mean_reciprocal_rank(some) == pytest.approx((1 + 0.4 + 0 + 0.25) / 4)
    assert [hits_at(some, k) for k in (1, 2, 3, 4)] == [0.25, 0.25, 0.5, 0.75]
    assert cumulative_matches(some, 4).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])


def test_chunks_change_nothing_and_no_query_gives_no_rank() -> None:
    scores, relevant, ignore = problem()
    for function in (first_ranks, average_precision):
        whole = function(scores, relevant, filter=ignore)
        torch.testing.assert_close(function(scores, relevant, filter=ignore, chunk_size=1), whole, equal_nan=True)
        assert function(scores[:0], relevant[:0]).shape == (0,)
    assert ranks(scores[:0], torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_wrong_input_is_refused() -> None:
    scores, relevant, _ = problem()
    with pytest.raises(ValueError, match=r"ranks: target must be \[23\] int64 indices below 7"):
        ranks(scores, torch.full((23,), 7))
    with pytest.raises(ValueError, match="ties must be one of 'mean', 'optimistic', 'pessimistic', got 'random'"):
        first_ranks(scores, relevant, ties="random")
    with pytest.raises(ValueError, match=r"relevant must be a bool tensor \[23, 7\] .* got \[23, 6\]"):
        average_precision(scores, relevant[:, 1:])
    with pytest.raises(ValueError, match=r"filter must be a bool tensor .* \[23, 7\] torch\.int64"):
        first_ranks(scores, relevant, filter=relevant.long())
    with pytest.raises(ValueError, match="scores must be numbers, got 1 that are NaN"):
        average_precision(
            scores.index_fill(0, torch.tensor([2]), 0.0).index_put(
                (torch.tensor([2]), torch.tensor([3])), torch.tensor(math.nan, dtype=torch.float64)
            ),
            relevant,
        )
