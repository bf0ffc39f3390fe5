"""Packed sequences: several sequences one after the other in [1, T, H, D], described by `cu_seqlens`.

Every sequence starts a chunk of its own. Their lengths are data, the tables below have sizes known without reading
it: `T // C + N` chunks hold any N sequences of T tokens in all, because `sum(ceil(length / C)) <= T // C + N`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops.linear_attention.layout import group_heads

__all__ = ["PackedLayout"]


class PackedLayout:
    """Chunk tables of packed sequences.

    Args:
        tokens: T, of all sequences together.
        chunk_size: C.
        cu_seqlens: [N + 1], int32 or int64: sequence n holds tokens `cu_seqlens[n]:cu_seqlens[n + 1]`.
    """

    def __init__(self, tokens: int, chunk_size: int, cu_seqlens: Tensor) -> None:
        self.tokens = tokens
        self.chunk_size = chunk_size
        self.rows = cu_seqlens.shape[0] - 1
        self.num_chunks = tokens // chunk_size + self.rows if tokens else 0
        starts = cu_seqlens.long()
        lengths = starts.diff()
        ends_of_chunks = ((lengths + chunk_size - 1) // chunk_size).cumsum(0)
        chunk = torch.arange(self.num_chunks, device=starts.device)
        # [chunks]; unused chunks at the end belong to row N, which no sequence has
        self.sequence: Tensor | None = torch.searchsorted(ends_of_chunks, chunk, right=True)
        used = self.sequence.clamp(max=max(self.rows - 1, 0))
        first_chunk = ends_of_chunks - (lengths + chunk_size - 1) // chunk_size
        offset = (chunk - first_chunk[used]) * chunk_size
        slot = offset[:, None] + torch.arange(chunk_size, device=starts.device)
        self._filled = (slot < lengths[used][:, None]) & (self.sequence < self.rows)[:, None]  # [chunks, C]
        self._token = (starts[used][:, None] + slot).clamp(0, max(tokens - 1, 0))  # [chunks, C]

    def new_output(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor that `join` fills; tokens outside all sequences stay 0."""
        return like.new_zeros(shape)

    def split(self, x: Tensor, heads: int, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Chunks `first:last` of x [B, T, Hx, D] as a new contiguous [chunks, B * heads, C, D]; Hx divides heads."""
        batch, _, x_heads, dim = x.shape
        index = self._token[first:last].reshape(-1)
        taken = x.index_select(1, index).view(batch, last - first, self.chunk_size, x_heads, dim)
        taken = taken.to(dtype).masked_fill(~self._filled[first:last][None, :, :, None, None], 0)
        taken = taken.permute(1, 0, 3, 2, 4).unsqueeze(3)
        shape = (last - first, batch, x_heads, heads // x_heads, self.chunk_size, dim)
        return taken.expand(shape).reshape(last - first, batch * heads, self.chunk_size, dim)

    def fill(self, out: Tensor, x: Tensor, first: int, last: int) -> None:
        """Copy chunks `first:last` of x to out [chunks, B * heads, C, D], as `split` gives them."""
        out.copy_(self.split(x, out.shape[1] // x.shape[0], first, last, out.dtype))

    def join(self, y: Tensor, out: Tensor, first: int, last: int) -> None:
        """Add chunks `first:last`, y [chunks, B * heads, C, D], to out [B, T, Hx, D] (zeros before)."""
        y = group_heads(y, out.shape[0], out.shape[2]).to(out.dtype)
        filled = self._filled[first:last]
        values = y.permute(1, 0, 3, 2, 4).masked_fill(~filled[None, :, :, None, None], 0).flatten(1, 2)
        out.index_add_(1, self._token[first:last].reshape(-1), values)

    def is_full(self, first: int, last: int) -> bool:
        """False: which chunks hold padded tokens is data."""
        return False

    def valid(self, first: int, last: int, like: Tensor) -> Tensor:
        """[chunks, 1, C], bool: whether a slot holds a token."""
        return self._filled[first:last, None]
