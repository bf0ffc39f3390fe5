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

    def _parts(self, x: Tensor, y: Tensor, first: int, last: int) -> list[tuple[Tensor, Tensor]]:
        """Views of x [B, T, Hx, D] and y [chunks, B, Hx, groups, C, D] that match: full chunks, then the ragged one."""
        size = self.chunk_size
        full = min(last, self.tokens // size)
        if full == last:
            return [(self._chunks(x, first * size, last - first, size), y)]
        tail = self.tokens - full * size
        parts = [(self._chunks(x, full * size, 1, tail), y[full - first :, ..., :tail, :])]
        if full > first:
            parts.append((self._chunks(x, first * size, full - first, size), y[: full - first]))
        return parts

    @staticmethod
    def _chunks(x: Tensor, start: int, count: int, size: int) -> Tensor:
        batch, _, heads, dim = x.shape
        tokens = x.narrow(1, start, count * size).view(batch, count, size, heads, 1, dim)
        return tokens.permute(1, 0, 3, 4, 2, 5)

    def fill(self, out: Tensor, x: Tensor, first: int, last: int) -> None:
        """Copy chunks `first:last` of x [B, T, Hx, D] to a contiguous [chunks, B * heads, C, D]; Hx divides heads."""
        batch, _, x_heads, dim = x.shape
        if last * self.chunk_size > self.tokens:
            out[-1].zero_()
        groups = out.view(last - first, batch, x_heads, out.shape[1] // (batch * x_heads), self.chunk_size, dim)
        for part, chunks in self._parts(x, groups, first, last):
            chunks.copy_(part)

    def join(self, y: Tensor, out: Tensor, first: int, last: int) -> None:
        """Write chunks `first:last`, y [chunks, B * heads, C, D], into out [B, T, Hx, D], summing groups of heads."""
        for part, chunks in self._parts(out, group_heads(y, out.shape[0], out.shape[2]).unsqueeze(3), first, last):
            part.copy_(chunks)

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
