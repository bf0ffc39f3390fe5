"""Rankings: where the right candidates stand when all are sorted by score, ties and left-out candidates included.

Sizes: B queries, N candidates. Scores are higher for better candidates. Ties are counted as the caller says:

    optimistic    the right one comes first among equals       1 + #(s > s*)
    pessimistic   it comes last                                1 + #(s > s*) + #(s = s*, others)
    mean          the mean over all orders of the equals       1 + #(s > s*) + #(s = s*, others) / (right ones + 1)

Cost O(B N), average precision O(B N log N); temporary memory O(chunk_size N).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from attensor.ops._checks import checked

__all__ = [
    "average_precision",
    "cumulative_matches",
    "first_ranks",
    "hits_at",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ranks",
]

Ties = Literal["mean", "optimistic", "pessimistic"]


@checked
def ranks(
    scores: Tensor,
    target: Tensor,
    *,
    filter: Tensor | None = None,
    ties: Ties = "mean",
    chunk_size: int = 1024,
) -> Tensor:
    """Rank of one candidate for each query, from 1.

    Args:
        scores: [B, N], any float dtype.
        target: [B], index of the right candidate.
        filter: [B, N], true for candidates that do not count, such as other right answers ("filtered" ranks); the
            target itself always counts.
        ties: "mean", "optimistic" or "pessimistic".
        chunk_size: queries at once.
    Returns:
        [B], float64.
    Raises:
        ValueError: shapes disagree, a score is not a number, a target does not exist, an unknown `ties`.
    """
    _check_scores("ranks", scores, chunk_size, filter=filter)
    fits = target.shape == scores.shape[:1] and target.dtype == torch.int64 and target.device == scores.device
    if not fits or (target.numel() and not 0 <= int(target.min()) <= int(target.max()) < scores.shape[1]):
        raise ValueError(
            f"ranks: target must be [{scores.shape[0]}] int64 indices below {scores.shape[1]} on {scores.device}, got "
            f"{list(target.shape)} {target.dtype} on {target.device}."
        )
    relevant = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, target[:, None], True)
    others = None if filter is None else filter & ~relevant
    return _first_ranks("ranks", scores, relevant, others, ties, chunk_size)


@checked
def first_ranks(
    scores: Tensor,
    relevant: Tensor,
    *,
    filter: Tensor | None = None,
    ties: Ties = "mean",
    chunk_size: int = 1024,
) -> Tensor:
    """Rank of the best of several right candidates for each query, from 1; infinite where there is none.

    Args:
        scores: [B, N], any float dtype.
        relevant: [B, N], true for right candidates.
        filter: [B, N], true for candidates that do not count, right ones too (the query's own camera, for instance).
        ties: "mean" (its expected rank when equals are shuffled), "optimistic" or "pessimistic".
        chunk_size: queries at once.
    Returns:
        [B], float64.
    Raises:
        ValueError: shapes disagree, a score is not a number, an unknown `ties`.
    """
    return _first_ranks("first_ranks", scores, relevant, filter, ties, chunk_size)


def _first_ranks(
    name: str, scores: Tensor, relevant: Tensor, filter: Tensor | None, ties: Ties, chunk_size: int
) -> Tensor:
    def of(scores: Tensor, relevant: Tensor, counted: Tensor) -> Tensor:
        right = relevant & counted
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        wrong = counted & ~right
        above, equal = (wrong & (scores > best)).sum(1).double(), (wrong & (scores == best)).sum(1).double()
        first = (right & (scores == best)).sum(1).double()
        before = equal / (1 + first) if ties == "mean" else equal * (ties == "pessimistic")
        return (1 + above + before).masked_fill(~right.any(1), torch.inf)

    return _by_rows(name, of, scores, relevant, filter, chunk_size)


@checked
def average_precision(
    scores: Tensor, relevant: Tensor, *, filter: Tensor | None = None, chunk_size: int = 1024
) -> Tensor:
    """Average precision of each query: the mean, over its right candidates, of the precision down to that one.

    Equal scores make one step, as in scikit-learn: precision is taken after all of them.

    Args:
        scores: [B, N], any float dtype.
        relevant: [B, N], true for right candidates.
        filter: [B, N], true for candidates that do not count.
        chunk_size: queries at once.
    Returns:
        [B], float64; not a number where no candidate is right.
    Raises:
        ValueError: shapes disagree, or a score is not a number.
    """
    return _average_precision("average_precision", scores, relevant, filter, chunk_size)


def _average_precision(name: str, scores: Tensor, relevant: Tensor, filter: Tensor | None, chunk_size: int) -> Tensor:
    def of(scores: Tensor, relevant: Tensor, counted: Tensor) -> Tensor:
        falling, order = scores.sort(dim=1, descending=True)
        right = (relevant & counted).gather(1, order).double()
        # of each candidate, how many there are down to the last of its equals
        end = torch.searchsorted(-falling, -falling, right=True) - 1
        precision = (right.cumsum(1) / counted.gather(1, order).cumsum(1)).gather(1, end)
        return torch.where(right > 0, precision, 0.0).sum(1) / right.sum(1)

    return _by_rows(name, of, scores, relevant, filter, chunk_size)


@checked
def mean_average_precision(scores: Tensor, relevant: Tensor, *, filter: Tensor | None = None) -> float:
    """Mean of `average_precision` over the queries that have a right candidate (mAP); nan if none has."""
    return _average_precision("mean_average_precision", scores, relevant, filter, 1024).nanmean().item()


@checked
def cumulative_matches(ranks: Tensor, most: int) -> Tensor:
    """Share of the queries that have a right candidate among the first 1, 2, .., `most` (the CMC curve).

    Args:
        ranks: [B], as `first_ranks` or `ranks` return them; queries without a right candidate (infinite) do not count.
        most: length of the curve.
    Returns:
        [most], float64.
    """
    _check_ranks("cumulative_matches", ranks)
    _check_count("cumulative_matches", "most", most)
    if most >= 2**31:
        raise ValueError(f"cumulative_matches: most must be below 2**31, the curve has so many numbers, got {most}.")
    places = torch.arange(1, most + 1, device=ranks.device)
    return (ranks[ranks.isfinite(), None] <= places).double().mean(0)


@checked
def hits_at(ranks: Tensor, k: int) -> float:
    """Share of the ranks [B] that are at most `k` (hits@k); infinite ones count as misses."""
    _check_ranks("hits_at", ranks)
    _check_count("hits_at", "k", k)
    return (ranks <= min(k, 2**62)).double().mean().item()


@checked
def mean_reciprocal_rank(ranks: Tensor) -> float:
    """Mean of 1 / rank over ranks [B] (MRR); infinite ones count as zero."""
    _check_ranks("mean_reciprocal_rank", ranks)
    return ranks.double().reciprocal().mean().item()


def _by_rows(
    name: str,
    of: Callable[[Tensor, Tensor, Tensor], Tensor],
    scores: Tensor,
    relevant: Tensor,
    filter: Tensor | None,
    chunk_size: int,
) -> Tensor:
    """`of(scores, relevant, counted)` for some rows at a time, after checking all three."""
    _check_scores(name, scores, chunk_size, relevant=relevant, filter=filter)
    parts = [scores.new_empty(0, dtype=torch.float64)]
    for start in range(0, len(scores), chunk_size):
        rows = slice(start, start + chunk_size)
        counted = torch.ones_like(relevant[rows]) if filter is None else ~filter[rows]
        parts.append(of(scores[rows], relevant[rows], counted))
    return torch.cat(parts)


def _check_scores(name: str, scores: Tensor, chunk_size: int, **masks: Tensor | None) -> None:
    if scores.ndim != 2 or not scores.is_floating_point() or scores.itemsize < 2 or scores.is_meta:
        raise ValueError(
            f"{name}: scores must be [B, N], float16 to float64, got {list(scores.shape)} {scores.dtype}; use .float()."
        )
    for argument, mask in masks.items():
        if mask is not None and (mask.shape, mask.dtype, mask.device) != (scores.shape, torch.bool, scores.device):
            raise ValueError(
                f"{name}: {argument} must be a bool tensor {list(scores.shape)} on {scores.device}, as scores, got "
                f"{list(mask.shape)} {mask.dtype} on {mask.device}."
            )
    if scores.isnan().any():
        raise ValueError(f"{name}: scores must be numbers, got {int(scores.isnan().sum())} that are NaN.")
    _check_count(name, "chunk_size", chunk_size)


def _check_ranks(name: str, ranks: Tensor) -> None:
    is_numbers = ranks.dtype in (torch.int32, torch.int64) or (ranks.is_floating_point() and ranks.itemsize > 1)
    if ranks.ndim != 1 or not is_numbers or ranks.is_meta:
        raise ValueError(
            f"{name}: ranks must be [B] numbers, as `ranks` and `first_ranks` return them, got {list(ranks.shape)} "
            f"{ranks.dtype} on {ranks.device}."
        )


def _check_count(name: str, argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: {argument} must be at least 1, got {value}.")
