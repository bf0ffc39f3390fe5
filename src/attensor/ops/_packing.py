"""Packed sequences: several in one row of tokens, bounded by `cu_seqlens`; written once for operators and layers.

Sizes: T tokens of the row, N sequences. Sequence n holds tokens cu_seqlens[n] up to cu_seqlens[n + 1]. No length is
read back to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first_tokens", "positions", "same_sequence", "sequence_index"]


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
