"""Packed sequences [1, T, ..] as rows of a batch [N, S, ..] and back; their lengths are never read."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Rows", "segments"]


def segments(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """[T]: the number of the sequence that each token belongs to."""
    positions = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, positions, right=True)


class Rows:
    """Conversions between packed tokens and a batch.

    Args:
        cu_seqlens: [N + 1], bounds of the sequences.
        max_seqlen: S, at least the longest.
        tokens: T of all sequences together.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> None:
        starts = cu_seqlens.long()
        slot = torch.arange(max_seqlen, device=starts.device)
        self.shape = (starts.shape[0] - 1, max_seqlen)
        self.filled = slot < starts.diff()[:, None]  # [N, S]
        self._token = (starts[:-1, None] + slot).clamp(max=max(tokens - 1, 0)).flatten()
        row = segments(starts, tokens) - 1
        place = torch.arange(tokens, device=starts.device) - starts[row]
        self._slot = (row * max_seqlen + place).clamp(0, max(self.shape[0] * max_seqlen - 1, 0))  # [T]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, T, ..] as [N, S, ..], zeros behind the end of a sequence."""
        rows = x[0].index_select(0, self._token).view(*self.shape, *x.shape[2:])
        return rows.masked_fill(~self.filled[(..., *[None] * (x.ndim - 2))], 0.0)

    def pack(self, x: Tensor) -> Tensor:
        """[N, S, ..] as [1, T, ..]."""
        return x.flatten(0, 1).index_select(0, self._slot)[None]
