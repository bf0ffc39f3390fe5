r"""The kernel sum tile by tile: O(n^2) operations in matrix products, O(n) memory.

    S = (phi_q phi_k^T) * C      y = S v      C_ij = c_{j - i}

All tiles of one block diagonal have the same C, and their products run as batches that fit a cache. Backward, with
g = dL/dy and W = g v^T:

    dv = S^T g      dphi_q = (W * C) phi_k      dphi_k = (W * C)^T phi_q      dC = W * (phi_q phi_k^T)

A tile holds R rows of the grid, each of w cells; in a sequence w = 1.
Sizes: N = B H, I and J tiles of queries and keys, E cells in a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.relative_kernel_attention.operands import Geometry, Operands

__all__ = ["keys_per_query", "tiles_backward", "tiles_forward"]

_TILE = 128  # cells of a tile, about
_CPU_ELEMENTS = 2**17  # of one batch of tiles: stays in the cache
_GPU_ELEMENTS = 2**26


class _Layout(NamedTuple):
    """How tokens are cut up: `q_rows` rows of the first axis in a tile of queries, `k_rows` in one of keys."""

    geometry: Geometry
    q_rows: int
    k_rows: int

    @classmethod
    def of(cls, geometry: Geometry) -> _Layout:
        queries, keys = geometry.queries, geometry.keys
        rows = max(1, _TILE // math.prod(queries[1:]))
        if queries[0] > rows:
            return cls(geometry, rows, rows)
        # with few queries, larger tiles of keys: decoding is then a handful of products
        wide = max(1, _TILE * _TILE // (math.prod(queries) * math.prod(keys[1:])))
        return cls(geometry, queries[0], min(max(wide, rows), keys[0]))

    def split(self, x: Tensor, *, is_query: bool) -> Tensor:
        """[B, H, T, D] as zero-padded [tiles, N, E, D]."""
        space, rows = (
            (self.geometry.queries, self.q_rows) if is_query else (self.geometry.keys, self.k_rows)
        )
        batch, heads, tokens, dim = x.shape
        cells, count = rows * math.prod(space[1:]), -(-space[0] // rows)
        buffer = x.new_zeros(batch, heads, count * cells, dim)
        buffer[:, :, :tokens].copy_(x)
        return buffer.view(batch * heads, count, cells, dim).transpose(0, 1).contiguous()

    def join(self, tiles: Tensor, like: Tensor) -> Tensor:
        """[tiles, N, E, D] as [B, H, T, D] with the first three sizes of `like`."""
        batch, heads, tokens = like.shape[:3]
        rows = tiles.transpose(0, 1).reshape(batch, heads, tiles.shape[0] * tiles.shape[2], tiles.shape[3])
        return rows[:, :, :tokens]

    def diagonals(self) -> Iterator[tuple[int, int, int]]:
        """(tile of keys less tile of queries, first tile of queries, last exclusive), without those in the future."""
        geometry = self.geometry
        q_tiles, k_tiles = -(-geometry.queries[0] // self.q_rows), -(-geometry.keys[0] // self.k_rows)
        shift = geometry.keys[0] - geometry.queries[0]
        for diagonal in range(1 - q_tiles, k_tiles):
            if geometry.is_causal and diagonal * self.k_rows > shift + self.q_rows - 1:
                return
            yield diagonal, max(0, -diagonal), min(q_tiles, k_tiles - diagonal)

    def offsets(self, diagonal: int, device: torch.device) -> Tensor:
        """[E_q, E_k]: number of each pair's offset in the flattened coefficients; the last for pairs beyond the grid."""
        queries, keys = self.geometry.queries, self.geometry.keys
        i, j = torch.arange(self.q_rows, device=device), torch.arange(self.k_rows, device=device)
        number = diagonal * self.k_rows + j - i[:, None] + queries[0] - 1
        outside = (number < 0) | (number >= self.geometry.offsets[0])
        if len(queries) == 2:
            a, b = torch.arange(queries[1], device=device), torch.arange(keys[1], device=device)
            across = b - a[:, None] + queries[1] - 1
            number = number[:, None, :, None] * self.geometry.offsets[1] + across[:, None]
            outside = outside[:, None, :, None].expand_as(number)
            number, outside = (t.flatten(2, 3).flatten(0, 1) for t in (number, outside))
        return number.masked_fill(outside, math.prod(self.geometry.offsets))


def keys_per_query(geometry: Geometry) -> int:
    """Keys that a query is multiplied with, on average: those of all tiles on the diagonals, rounded."""
    layout = _Layout.of(geometry)
    across = math.prod(geometry.queries[1:]) * math.prod(geometry.keys[1:])
    pairs = sum(last - first for _, first, last in layout.diagonals()) * layout.q_rows * layout.k_rows * across
    return round(pairs / math.prod(geometry.queries))


class _Batch(NamedTuple):
    """Tiles of one diagonal: those of queries, those of keys, the coefficients' numbers, C [N or H, E_q, E_k]."""

    queries: slice
    keys: slice
    number: Tensor
    weight: Tensor


def _batches(x: Operands, layout: _Layout) -> Iterator[_Batch]:
    # one more coefficient, 0, for pairs of which one lies in the padding
    table = torch.nn.functional.pad(x.coefficients.flatten(1), (0, 1))
    rows = x.q.shape[0] * x.q.shape[1]
    for diagonal, first, last in layout.diagonals():
        number = layout.offsets(diagonal, x.q.device)
        weight = table.index_select(1, number.flatten()).view(-1, *number.shape)
        budget = _CPU_ELEMENTS if x.q.device.type == "cpu" else _GPU_ELEMENTS
        step = max(1, budget // max(1, rows * number.numel()))
        for start in range(first, last, step):
            end = min(start + step, last)
            yield _Batch(slice(start, end), slice(start + diagonal, end + diagonal), number, weight)


def _same_segment(x: Operands, layout: _Layout) -> tuple[Tensor, Tensor] | None:
    if x.segment is None:
        return None
    numbers = x.segment.to(x.q.dtype)[None, None, :, None]  # exact below 2^24 sequences
    return layout.split(numbers, is_query=True), layout.split(numbers, is_query=False)


def _weigh(scores: Tensor, batch: _Batch, heads: int, segments: tuple[Tensor, Tensor] | None) -> Tensor:
    """Multiply scores [n, E_q, E_k] by C, in place, and remove pairs of different segments."""
    tiles = batch.queries.stop - batch.queries.start
    by_head = scores.view(tiles, scores.shape[0] // max(1, tiles * heads), heads, *scores.shape[1:])
    by_head.mul_(batch.weight)
    if segments is not None:
        same = segments[0][batch.queries] == segments[1][batch.keys].mT  # [tiles, 1, E_q, E_k]
        by_head.mul_(same.unsqueeze(1))
    return scores


def tiles_forward(x: Operands, geometry: Geometry) -> Tensor:
    """y [B, H, Tq, V]."""
    layout, heads = _Layout.of(geometry), x.q.shape[1]
    q, k, v = (layout.split(t, is_query=t is x.q) for t in x[:3])
    segments = _same_segment(x, layout)
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for batch in _batches(x, layout):
        queries, keys, values = (t.flatten(0, 1) for t in (q[batch.queries], k[batch.keys], v[batch.keys]))
        scores = _weigh(torch.bmm(queries, keys.mT), batch, heads, segments)
        out[batch.queries].view(-1, *out.shape[2:]).baddbmm_(scores, values)
    return layout.join(out, x.q)


def tiles_backward(x: Operands, grad: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the coefficients from that of y [B, H, Tq, V]."""
    layout, heads = _Layout.of(geometry), x.q.shape[1]
    q, k, v = (layout.split(t, is_query=t is x.q) for t in x[:3])
    g = layout.split(grad, is_query=True)
    segments = _same_segment(x, layout)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    table = x.coefficients.new_zeros(heads, math.prod(geometry.offsets) + 1)
    for batch in _batches(x, layout):
        queries, keys, values = (t.flatten(0, 1) for t in (q[batch.queries], k[batch.keys], v[batch.keys]))
        wanted = g[batch.queries].flatten(0, 1)
        kernel, worth = torch.bmm(queries, keys.mT), torch.bmm(wanted, values.mT)
        product = (kernel * worth).view(-1, heads, *kernel.shape[1:])
        if segments is not None:
            same = segments[0][batch.queries] == segments[1][batch.keys].mT
            product = product.view(same.shape[0], -1, *product.shape[1:]) * same.unsqueeze(1)
        by_offset = product.flatten(0, -4).sum(0)
        table.index_add_(1, batch.number.flatten(), by_offset.flatten(1))
        scores = _weigh(kernel, batch, heads, segments)
        worth = _weigh(worth, batch, heads, segments)
        grad_v[batch.keys].view(-1, *grad_v.shape[2:]).baddbmm_(scores.mT, wanted)
        grad_q[batch.queries].view(-1, *grad_q.shape[2:]).baddbmm_(worth, keys)
        grad_k[batch.keys].view(-1, *grad_k.shape[2:]).baddbmm_(worth.mT, queries)
    grad_coefficients = table[:, :-1].reshape(x.coefficients.shape)
    return layout.join(grad_q, x.q), layout.join(grad_k, x.k), layout.join(grad_v, x.v), grad_coefficients
