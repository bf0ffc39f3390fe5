"""Rankings: where the right candidates stand when all are sorted by score, ties and left-out candidates included.

Sizes: B queries, N candidates. Scores are higher for better candidates. Ties are counted as the caller says:

    optimistic    the right one comes first among equals       1 + #(s > s*)
    pessimistic   it comes last                                1 + #(s > s*) + #(s = s*, others)
    mean          the mean over all orders of the equals       1 + #(s > s*) + #(s = s*, others) / (right ones + 1)

Cost O(B N), average precision O(B N log N); temporary memory O(chunk_size N).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "average_precision",
    "cumulative_matches",
    "first_ranks",
    "hits_at",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ranks",
]

TIES = ("mean", "optimistic", "pessimistic")


def ranks(
    scores: Tensor,
    target: Tensor,
    *,
    ignore: Tensor | None = None,
    ties: str = "mean",
    chunk_size: int = 1024,
) -> Tensor:
    """Rank of one candidate for each query, from 1.

    Args:
        scores: [B, N], any float dtype.
        target: [B], index of the right candidate.
        ignore: [B, N], true for candidates that do not count, such as other right answers ("filtered" ranks); the
            target itself always counts.
        ties: "mean", "optimistic" or "pessimistic".
        chunk_size: queries at once.
    Returns:
        [B], float64.
    Raises:
        ValueError: shapes disagree, a score is not a number, a target does not exist, an unknown `ties`.
    """
    if target.shape != scores.shape[:1] or (
        target.numel() and not 0 <= int(target.min()) <= int(target.max()) < scores.shape[1]
    ):
        raise ValueError(f"ranks: target must be [{scores.shape[0]}] indices below {scores.shape[1]}.")
    relevant = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, target[:, None], True)
    others = ignore if ignore is None else ignore & ~relevant
    return first_ranks(scores, relevant, ignore=others, ties=ties, chunk_size=chunk_size)


def first_ranks(
    scores: Tensor,
    relevant: Tensor,
    *,
    ignore: Tensor | None = None,
    ties: str = "mean",
    chunk_size: int = 1024,
) -> Tensor:
    """Rank of the best of several right candidates for each query, from 1; infinite where there is none.

    Args:
        scores: [B, N], any float dtype.
        relevant: [B, N], true for right candidates.
        ignore: [B, N], true for candidates that do not count, right ones too (the query's own camera, for instance).
        ties: "mean" (its expected rank when equals are shuffled), "optimistic" or "pessimistic".
        chunk_size: queries at once.
    Returns:
        [B], float64.
    Raises:
        ValueError: shapes disagree, a score is not a number, an unknown `ties`.
    """
    if ties not in TIES:
        raise ValueError(f"first_ranks: ties must be one of {', '.join(TIES)}, got {ties!r}.")

    def of(scores: Tensor, relevant: Tensor, counted: Tensor) -> Tensor:
        right = relevant & counted
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        wrong = counted & ~right
        above, equal = (wrong & (scores > best)).sum(1).double(), (wrong & (scores == best)).sum(1).double()
        first = (right & (scores == best)).sum(1).double()
        before = equal / (1 + first) if ties == "mean" else equal * (ties == "pessimistic")
        return (1 + above + before).masked_fill(~right.any(1), torch.inf)

    return _by_rows("first_ranks", of, scores, relevant, ignore, chunk_size)


def average_precision(
    scores: Tensor, relevant: Tensor, *, ignore: Tensor | None = None, chunk_size: int = 1024
) -> Tensor:
    """Average precision of each query: the mean, over its right candidates, of the precision down to that one.

    Equal scores make one step, as in scikit-learn: precision is taken after all of them.

    Args:
        scores: [B, N], any float dtype.
        relevant: [B, N], true for right candidates.
        ignore: [B, N], true for candidates that do not count.
        chunk_size: queries at once.
    Returns:
        [B], float64; not a number where no candidate is right.
    Raises:
        ValueError: shapes disagree, or a score is not a number.
    """

    def of(scores: Tensor, relevant: Tensor, counted: Tensor) -> Tensor:
        falling, order = scores.sort(dim=1, descending=True)
        right = (relevant & counted).gather(1, order).double()
        # of each candidate, how many there are down to the last of its equals
        end = torch.searchsorted(-falling, -falling, right=True) - 1
        precision = (right.cumsum(1) / counted.gather(1, order).cumsum(1)).gather(1, end)
        return torch.where(right > 0, precision, 0.0).sum(1) / right.sum(1)

    return _by_rows("average_precision", of, scores, relevant, ignore, chunk_size)


def mean_average_precision(scores: Tensor, relevant: Tensor, *, ignore: Tensor | None = None) -> float:
    """Mean of `average_precision` over the queries that have a right candidate (mAP); nan if none has."""
    return average_precision(scores, relevant, ignore=ignore).nanmean().item()


def cumulative_matches(ranks: Tensor, most: int) -> Tensor:
    """Share of the queries that have a right candidate among the first 1, 2, .., `most` (the CMC curve).

    Args:
        ranks: [B], as `first_ranks` or `ranks` return them; queries without a right candidate (infinite) do not count.
        most: length of the curve.
    Returns:
        [most], float64.
    """
    places = torch.arange(1, most + 1, device=ranks.device)
    return (ranks[ranks.isfinite(), None] <= places).double().mean(0)


def hits_at(ranks: Tensor, k: int) -> float:
    """Share of the ranks [B] that are at most `k` (hits@k); infinite ones count as misses."""
    return (ranks <= k).double().mean().item()


def mean_reciprocal_rank(ranks: Tensor) -> float:
    """Mean of 1 / rank over ranks [B] (MRR); infinite ones count as zero."""
    return ranks.double().reciprocal().mean().item()


def _by_rows(
    name: str,
    of: Callable[[Tensor, Tensor, Tensor], Tensor],
    scores: Tensor,
    relevant: Tensor,
    ignore: Tensor | None,
    chunk_size: int,
) -> Tensor:
    """`of(scores, relevant, counted)` for some rows at a time, after checking all three."""
    for argument, mask in (("relevant", relevant), ("ignore", ignore)):
        if scores.ndim != 2 or (mask is not None and (mask.shape != scores.shape or mask.dtype != torch.bool)):
            raise ValueError(
                f"{name}: scores must be [B, N] and {argument} a boolean tensor of the same shape, got "
                f"{list(scores.shape)} and {None if mask is None else f'{list(mask.shape)} {mask.dtype}'}."
            )
    if scores.isnan().any():
        raise ValueError(f"{name}: scores has {int(scores.isnan().sum())} entries that are not a number.")
    parts = [scores.new_empty(0, dtype=torch.float64)]
    for start in range(0, len(scores), chunk_size):
        rows = slice(start, start + chunk_size)
        counted = torch.ones_like(relevant[rows]) if ignore is None else ~ignore[rows]
        parts.append(of(scores[rows], relevant[rows], counted))
    return torch.cat(parts)
