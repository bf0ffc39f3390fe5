r"""The kernel sum tile by tile, in matrix products and O(n) memory: O(n^2), or O(n) where coefficients are constant.

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

from attensor.ops.relative_kernel_attention.far import Far, add_far, add_far_gradients
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands

__all__ = ["Layout", "ends", "find_far", "products_of_tiles", "tiles_backward", "tiles_forward"]

_TILE = 128  # cells of a tile, about
_CPU_ELEMENTS = 2**17  # of one batch of tiles: stays in the cache
_GPU_ELEMENTS = 2**26


class Layout(NamedTuple):
    """How tokens are cut up: `q_rows` rows of the first axis in a tile of queries, `k_rows` in one of keys."""

    geometry: Geometry
    q_rows: int
    k_rows: int

    @classmethod
    def of(cls, geometry: Geometry) -> Layout:
        """Tiles of about _TILE cells."""
        queries, keys = geometry.queries, geometry.keys
        rows = max(1, _TILE // math.prod(queries[1:]))
        if queries[0] > rows:
            return cls(geometry, rows, rows)
        # with few queries, larger tiles of keys: decoding is then a handful of products
        wide = max(1, _TILE * _TILE // (math.prod(queries) * math.prod(keys[1:])))
        return cls(geometry, queries[0], min(max(wide, rows), keys[0]))

    def split(self, x: Tensor, *, is_query: bool) -> Tensor:
        """[B, H, T, D] as zero-padded [tiles, N, E, D]."""
        space, rows = (self.geometry.queries, self.q_rows) if is_query else (self.geometry.keys, self.k_rows)
        batch, heads, tokens, dim = x.shape
        cells, count = rows * math.prod(space[1:]), -(-space[0] // rows)
        buffer = x.new_zeros(batch, heads, count * cells, dim)
        buffer[:, :, :tokens].copy_(x)
        return buffer.view(batch * heads, count, cells, dim).transpose(0, 1).contiguous()

    def split_all(self, x: Operands) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as tiles."""
        return self.split(x.q, is_query=True), self.split(x.k, is_query=False), self.split(x.v, is_query=False)

    def join(self, tiles: Tensor, like: Tensor) -> Tensor:
        """[tiles, N, E, D] as [B, H, T, D] with the first three sizes of `like`."""
        batch, heads, tokens = like.shape[:3]
        rows = tiles.transpose(0, 1).reshape(batch, heads, tiles.shape[0] * tiles.shape[2], tiles.shape[3])
        return rows[:, :, :tokens]

    @property
    def tiles(self) -> tuple[int, int]:
        """Numbers of tiles of queries and of keys."""
        return -(-self.geometry.queries[0] // self.q_rows), -(-self.geometry.keys[0] // self.k_rows)

    def diagonals(self, far: Far | None) -> Iterator[tuple[int, int, int]]:
        """(tile of keys less tile of queries, first tile of queries, last exclusive), without far and future ones."""
        q_tiles, k_tiles = self.tiles
        first, last = 1 - q_tiles, k_tiles - 1
        if self.geometry.is_causal:
            last = min(last, (self.geometry.keys[0] - self.geometry.queries[0] + self.q_rows - 1) // self.k_rows)
        if far is not None:
            first = first if far.left is None else far.left + 1
            last = last if far.right is None else far.right - 1
        for diagonal in range(first, last + 1):
            yield diagonal, max(0, -diagonal), min(q_tiles, k_tiles - diagonal)

    def far(self, num_features: int, value_dim: int) -> Far | None:
        """Tiles whose coefficients are all the same, if it pays to treat them by running sums."""
        geometry, rows = self.geometry, self.k_rows
        q_tiles, k_tiles = self.tiles
        if geometry.reach is None or self.q_rows != rows:
            return None
        shift = geometry.keys[0] - geometry.queries[0]
        left = (shift - geometry.reach - rows + 1) // rows  # offsets in the tile are at most -reach
        right = -((1 - geometry.reach - shift - rows) // rows)  # at least reach
        has_right = right < k_tiles and not geometry.is_causal
        far = Far(left if left > -q_tiles else None, right if has_right else None)
        sums = 2 * num_features * value_dim * (q_tiles + k_tiles)
        near, whole = (self._pairs(f) * rows * (num_features + value_dim) for f in (far, None))
        return far if near + sums < whole else None

    def _pairs(self, far: Far | None) -> int:
        """Pairs of tiles that are multiplied."""
        return sum(last - first for _, first, last in self.diagonals(far))

    def products(self, num_features: int, value_dim: int) -> int:
        """Multiplications of one head, forward."""
        geometry, far = self.geometry, self.far(num_features, value_dim)
        across = math.prod(geometry.queries[1:]) * math.prod(geometry.keys[1:])
        products = self._pairs(far) * self.q_rows * self.k_rows * across * (num_features + value_dim)
        if far is not None:
            sides = far.sides(*self.tiles)
            tiles = self.tiles[1] + sum(queries.stop - queries.start for _, queries, _ in sides)
            products += tiles * self.k_rows * num_features * value_dim
        return products

    def offsets(self, diagonal: int, device: torch.device) -> Tensor:
        """[E_q, E_k]: where each pair's offset stands in the flattened coefficients; behind them if none."""
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


def products_of_tiles(geometry: Geometry, num_features: int, value_dim: int) -> int:
    """Multiplications of one head in the forward pass; value_dim includes the denominator's column."""
    return Layout.of(geometry).products(num_features, value_dim)


class _Batch(NamedTuple):
    """Tiles of one diagonal: those of queries, those of keys, the coefficients' numbers, C [N or H, E_q, E_k]."""

    queries: slice
    keys: slice
    number: Tensor
    weight: Tensor


def _batches(x: Operands, layout: Layout, far: Far | None) -> Iterator[_Batch]:
    # one more coefficient, 0, for pairs of which one lies in the padding
    table = torch.nn.functional.pad(x.coefficients.flatten(1), (0, 1))
    rows = x.q.shape[0] * x.q.shape[1]
    for diagonal, first, last in layout.diagonals(far):
        number = layout.offsets(diagonal, x.q.device)
        weight = table.index_select(1, number.flatten()).view(-1, *number.shape)
        budget = _CPU_ELEMENTS if x.q.device.type == "cpu" else _GPU_ELEMENTS
        step = max(1, budget // max(1, rows * number.numel()))
        for start in range(first, last, step):
            end = min(start + step, last)
            yield _Batch(slice(start, end), slice(start + diagonal, end + diagonal), number, weight)


def _same_segment(x: Operands, layout: Layout) -> tuple[Tensor, Tensor] | None:
    if x.segment is None:
        return None
    numbers = x.segment.to(x.q.dtype)[None, None, :, None]  # exact below 2^24 sequences
    return layout.split(numbers, is_query=True), layout.split(numbers, is_query=False)


def find_far(x: Operands, layout: Layout) -> Far | None:
    """The tiles that are treated by running sums, if any are."""
    return layout.far(x.q.shape[-1], x.v.shape[-1]) if x.segment is None else None


def ends(x: Operands) -> Tensor:
    """[H, 2]: the coefficients of the first and the last offset, which all far ones share."""
    return x.coefficients[:, [0, -1]]


def _by_head(scores: Tensor, batch: _Batch, heads: int) -> Tensor:
    """[n N, E_q, E_k] as [n, B, H, E_q, E_k]."""
    tiles = batch.queries.stop - batch.queries.start
    return scores.view(tiles, scores.shape[0] // (tiles * heads), heads, *scores.shape[1:])


def _same(segments: tuple[Tensor, Tensor], batch: _Batch) -> Tensor:
    """[n, 1, 1, E_q, E_k]: whether query and key belong to one packed sequence."""
    return (segments[0][batch.queries] == segments[1][batch.keys].mT).unsqueeze(1)


def _weigh(scores: Tensor, batch: _Batch, heads: int, segments: tuple[Tensor, Tensor] | None) -> Tensor:
    """Multiply scores [n N, E_q, E_k] by C and remove pairs of different sequences, in place."""
    by_head = _by_head(scores, batch, heads)
    by_head.mul_(batch.weight)
    if segments is not None:
        by_head.mul_(_same(segments, batch))
    return scores


def tiles_forward(x: Operands, geometry: Geometry) -> Tensor:
    """y [B, H, Tq, V + 1], of v and of ones in the last column."""
    layout, heads, x = Layout.of(geometry), x.q.shape[1], x.with_ones()
    q, k, v = layout.split_all(x)
    segments, far = _same_segment(x, layout), find_far(x, layout)
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for batch in _batches(x, layout, far):
        queries, keys, values = (t.flatten(0, 1) for t in (q[batch.queries], k[batch.keys], v[batch.keys]))
        scores = _weigh(torch.bmm(queries, keys.mT), batch, heads, segments)
        _add(out, batch.queries, torch.bmm(scores, values))
    if far is not None:
        add_far(out, (q, k, v), ends(x), far)
    return layout.join(out, x.q)


def tiles_backward(x: Operands, grad: Tensor, geometry: Geometry) -> list[Tensor]:
    """Gradients of q, k, v and the coefficients from that of y [B, H, Tq, V + 1]."""
    layout, heads, x = Layout.of(geometry), x.q.shape[1], x.with_ones()
    q, k, v = layout.split_all(x)
    g = layout.split(grad, is_query=True)
    segments, far = _same_segment(x, layout), find_far(x, layout)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    table = x.coefficients.new_zeros(heads, math.prod(geometry.offsets) + 1)
    for batch in _batches(x, layout, far):
        queries, keys, values = (t.flatten(0, 1) for t in (q[batch.queries], k[batch.keys], v[batch.keys]))
        wanted = g[batch.queries].flatten(0, 1)
        kernel, worth = torch.bmm(queries, keys.mT), torch.bmm(wanted, values.mT)
        product = _by_head(kernel * worth, batch, heads)
        if segments is not None:
            product.mul_(_same(segments, batch))
        table.index_add_(1, batch.number.flatten(), product.sum((0, 1)).flatten(1))
        scores = _weigh(kernel, batch, heads, segments)
        worth = _weigh(worth, batch, heads, segments)
        _add(grad_v, batch.keys, torch.bmm(scores.mT, wanted))
        _add(grad_q, batch.queries, torch.bmm(worth, keys))
        _add(grad_k, batch.keys, torch.bmm(worth.mT, queries))
    if far is not None:
        table[:, [0, -2]] += add_far_gradients((grad_q, grad_k, grad_v), (q, k, v), g, ends(x), far)
    grads = [layout.join(grad, like) for grad, like in zip((grad_q, grad_k, grad_v[..., :-1]), x[:3])]
    return [*grads, table[:, :-1].reshape(x.coefficients.shape)]


def _add(total: Tensor, tiles: slice, part: Tensor) -> None:
    """Add part [n N, E, D] to some tiles of total [tiles, N, E, D]."""
    target = total[tiles]
    target += part.view(target.shape)
