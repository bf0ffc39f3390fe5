"""Packed sequences: several in one row of tokens, bounded by `cu_seqlens`; written once for operators and layers.

Sizes: T tokens of the row, N sequences. Sequence n holds tokens cu_seqlens[n] up to cu_seqlens[n + 1]. No length is
read back to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chunks_of", "first_tokens", "positions", "sequence_index", "visible"]


def sequence_index(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Number of the sequence of each of T tokens, int64 [T]; those after the last bound get N."""
    token = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, token, right=True) - 1


def first_tokens(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Where the sequence of each token starts, int64 [T]."""
    return cu_seqlens.long()[sequence_index(cu_seqlens, tokens)]


def positions(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Place of each token in its sequence, int64 [T], from 0."""
    return torch.arange(tokens, device=cu_seqlens.device) - first_tokens(cu_seqlens, tokens)


def visible(cu_seqlens: tuple[Tensor, Tensor], tokens: tuple[int, int], is_causal: bool) -> Tensor:
    """Whether a query may see a key, bool [Tq, Tk]: of the same sequence; causal: not nearer to its end."""
    queries, keys = (sequence_index(bounds, n) for bounds, n in zip(cu_seqlens, tokens))
    together = queries[:, None] == keys
    if not is_causal:
        return together
    # tokens from this one to the end of its sequence; past the last bound there is none
    left_q, left_k = (
        torch.cat([bounds[1:], bounds[-1:]])[index.clamp_min(0)] - torch.arange(n, device=index.device)
        for bounds, index, n in zip(cu_seqlens, (queries, keys), tokens)
    )
    return together & (left_k >= left_q[:, None])


def chunks_of(cu_seqlens: Tensor, tokens: int, size: int) -> tuple[Tensor, Tensor]:
    """The sequences cut into chunks of `size` tokens, each starting with a chunk of its own.

    Their lengths are data, the number of chunks is not: `T // size + N` are enough, for
    `sum(ceil(length / size)) <= T // size + N`.

    Returns:
        tokens of each chunk, int64 [chunks, size], -1 where it has none; and its sequence [chunks], N if it is unused.
    """
    bounds = cu_seqlens.long()
    rows = len(bounds) - 1
    counts = (bounds.diff() + size - 1) // size
    ends = counts.cumsum(0)
    chunk = torch.arange(tokens // size + rows if tokens and rows else 0, device=bounds.device)
    sequence = torch.searchsorted(ends, chunk, right=True)
    used = sequence.clamp(max=max(rows - 1, 0))
    first = bounds[used] + (chunk - (ends - counts)[used]) * size
    token = first[:, None] + torch.arange(size, device=bounds.device)
    stop = torch.where(sequence < rows, bounds[used + 1], 0)
    return torch.where(token < stop[:, None], token, -1), sequence
