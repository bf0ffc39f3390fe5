"""Packed sequences: several in one row of tokens, bounded by `cu_seqlens`; written once for operators and layers.

Sizes: T tokens of the row, N sequences. Sequence n holds tokens cu_seqlens[n] up to cu_seqlens[n + 1]. No length is
read back to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chunks_of", "first_tokens", "positions", "same_sequence", "sequence_index"]


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


def same_sequence(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Whether two tokens are of one sequence, bool [T, T]."""
    index = sequence_index(cu_seqlens, tokens)
    return index[:, None] == index


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
