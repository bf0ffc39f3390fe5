"""How tokens are laid out in chunks: [B, T, H, D] in memory, [chunks, batch * heads, C, D] in the algorithm.

A layout cuts T tokens into chunks of C = `chunk_size` and names, for every chunk, the row of the state table that
it reads and writes. `DenseLayout` has one row (all batch entries run in step), `packing.PackedLayout` one a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DenseLayout", "group_heads"]


class DenseLayout:
    """Chunks of a batch of equally long sequences; the last chunk may be ragged and is filled up with zeros.

    Args:
        tokens: T.
        chunk_size: C.
    """

    sequence: Tensor | None = None
    rows = 1

    def __init__(self, tokens: int, chunk_size: int) -> None:
        self.tokens = tokens
        self.chunk_size = chunk_size
        self.num_chunks = -(-tokens // chunk_size)

    def new_output(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor that `join` fills."""
        return like.new_empty(shape)

    def _parts(self, first: int, last: int) -> list[tuple[slice, slice, int, int]]:
        """(chunks of the segment, tokens, number of chunks, tokens in each): the full chunks, then the ragged one."""
        size = self.chunk_size
        full = min(last, self.tokens // size)
        parts = []
        if full > first:
            parts.append((slice(0, full - first), slice(first * size, full * size), full - first, size))
        if last > full:
            parts.append((slice(full - first, None), slice(full * size, self.tokens), 1, self.tokens - full * size))
        return parts

    def split(self, x: Tensor, heads: int, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Chunks `first:last` of x [B, T, Hx, D] as a new contiguous [chunks, B * heads, C, D]; Hx divides heads."""
        batch, _, x_heads, dim = x.shape
        shape = (last - first, batch, x_heads, heads // x_heads, self.chunk_size, dim)
        ragged = last * self.chunk_size > self.tokens
        buffer = x.new_zeros(shape, dtype=dtype) if ragged else x.new_empty(shape, dtype=dtype)
        for chunks, tokens, count, size in self._parts(first, last):
            part = x[:, tokens].view(batch, count, size, x_heads, dim).permute(1, 0, 3, 2, 4)
            buffer[chunks, ..., :size, :].copy_(part.unsqueeze(3))
        return buffer.view(last - first, batch * heads, self.chunk_size, dim)

    def join(self, y: Tensor, out: Tensor, first: int, last: int) -> None:
        """Write chunks `first:last`, y [chunks, B * heads, C, D], into out [B, T, Hx, D], summing groups of heads."""
        y = group_heads(y, out.shape[0], out.shape[2])
        for chunks, tokens, count, size in self._parts(first, last):
            target = out[:, tokens].view(out.shape[0], count, size, *out.shape[2:]).permute(1, 0, 3, 2, 4)
            target.copy_(y[chunks, ..., :size, :])

    def is_full(self, first: int, last: int) -> bool:
        """True when no chunk in `first:last` holds a padded token (known without looking at data)."""
        return last * self.chunk_size <= self.tokens

    def valid(self, first: int, last: int, like: Tensor) -> Tensor:
        """[chunks, 1, C], bool: whether a slot holds a token."""
        slots = torch.arange(first * self.chunk_size, last * self.chunk_size, device=like.device)
        return (slots < self.tokens).view(last - first, 1, self.chunk_size)


def group_heads(y: Tensor, batch: int, heads: int) -> Tensor:
    """[chunks, B * H, C, D] -> [chunks, B, heads, C, D], summed over the query heads that share a key head."""
    chunks, rows, size, dim = y.shape
    if rows == batch * heads:
        return y.view(chunks, batch, heads, size, dim)
    return y.view(chunks, batch, heads, rows // (batch * heads) if batch else 1, size, dim).sum(3)
