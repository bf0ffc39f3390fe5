r"""Local attention in blocks: the queries of a block share one window, the block and a halo around it.

    out_i = sum_j softmax_j(scale q_i . k_j + q_i . (R_height[y] + R_width[x])) v_j

over the S x S cells j of the window, S = block + 2 halo, with y, x the row and column of j in the window minus those of
i in the block. Sizes: B batch, H heads, K key width, V value width; P query rows and columns a block.
Source: arXiv:2103.12731, sections 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._blocks import axes_of, from_blocks, to_blocks
from attensor.ops._checks import check_float, check_qkv, checked, scale_of
from attensor.ops._confine import is_finite
from attensor.ops._free_sizes import completed, coordinates, cropped, in_rows, is_free, whole
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.softmax_attention import softmax_attention
from attensor.ops.softmax_attention.reference import dense

__all__ = ["halo_attention", "halo_attention_reference"]

_NAME = "halo_attention"


@dataclass(frozen=True)
class Problem:
    """Arguments of `halo_attention`, by the same names, on a map that blocks tile."""

    q: Tensor
    k: Tensor
    v: Tensor
    block_size: int
    halo_size: int
    query_stride: int
    relative_embedding: Tensor | None
    border: str
    legacy_offsets: bool
    scale: float
    size: tuple[int, int]  # rows and columns of the map, before it was padded

    @property
    def window(self) -> int:
        """S: cells along a side of a window."""
        return self.block_size + 2 * self.halo_size

    @property
    def queries(self) -> int:
        """P: queries along a side of a block."""
        return self.block_size // self.query_stride

    def offsets(self) -> Tensor:
        """Rows of a table for a query and a key along one axis: [P, S]."""
        device = self.q.device
        queries = torch.arange(self.queries, device=device) * (1 if self.legacy_offsets else self.query_stride)
        return torch.arange(self.window, device=device) - queries[:, None] + self.window - 1


@checked
def halo_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int,
    halo_size: int,
    query_stride: int = 1,
    relative_embedding: Tensor | None = None,
    border: Literal["mask", "zero"] = "mask",
    legacy_offsets: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention of each block of a map to its own cells and a halo: O(n S^2 (K + V)) a head for n queries, in time.

    Args:
        q: [B, rows', columns', H, K]: the queries at every `query_stride`-th row and column of the map.
        k: [B, rows, columns, Hkv, K]; Hkv divides H. Sizes that blocks do not tile are padded at the lower right.
        v: [B, rows, columns, Hkv, V].
        block_size: cells along a side of a block, a multiple of query_stride.
        halo_size: cells that a window reaches beyond its block on every side.
        query_stride: 1, or more to make the map smaller.
        relative_embedding: [2, 2 S - 1, K]: what queries are multiplied with for each row (first) and column (second)
            between a key in its window and the query in its block, beginning at -(S - 1). It is not scaled: multiply it
            by `scale` where positions are to be.
        border: `"mask"`: nobody sees beyond the map; `"zero"`: cells of zeros are seen there (timm).
        legacy_offsets: count strided queries of a block as if they were neighbours (timm's weights).
        scale: multiplies q k; `K ** -0.5` if None.
        backend: `"reference"` or `"torch"`; the best available if None.
    Returns:
        [B, rows', columns', H, V] in v's dtype. Memory (S / block_size)^2 of k and v, and S^2 scores for each query.
    Raises:
        ShapeError: sizes disagree. ValueError: a block that the stride does not divide.
        TypeError: dtypes differ or are not floating.
    Source: arXiv:2103.12731, sections 2.2 and 3.1. Derivatives of any order.
    """
    check_qkv(_NAME, q, k, v, space_dims=(2,))
    _check(q, k, block_size, halo_size, query_stride)
    _check_tables(q, relative_embedding, block_size + 2 * halo_size)
    rows, columns = k.shape[1], k.shape[2]
    problem = Problem(
        _tiled(q, block_size // query_stride), _tiled(k, block_size), _tiled(v, block_size), block_size, halo_size,
        query_stride, relative_embedding, border, legacy_offsets, scale_of(q, scale), (rows, columns),
    )  # fmt: skip
    return cropped(_OPERATOR(problem, backend), 1, q.shape[1:3])


# a window has the square of it in cells, which are counted in 64 bits
_WIDEST = 2**31

halo_attention_reference = reference_of(halo_attention, "Dense attention under a bias made of coordinates: O(n^2).")


def _check(q: Tensor, k: Tensor, block_size: int, halo_size: int, query_stride: int) -> None:
    if block_size < 1 or halo_size < 0 or query_stride < 1 or block_size % query_stride:
        raise ValueError(
            f"{_NAME}: block_size must be at least 1 and a multiple of query_stride, halo_size at least 0, got "
            f"block_size {block_size}, halo_size {halo_size}, query_stride {query_stride}."
        )
    if (window := block_size + 2 * halo_size) >= _WIDEST:
        raise ValueError(
            f"{_NAME}: block_size + 2 halo_size must be below {_WIDEST}, got {block_size} + 2 x {halo_size} = {window}."
        )
    expected = [(side - 1) // query_stride + 1 for side in k.shape[1:3]]  # as a convolution has it, for free sizes
    if list(q.shape[1:3]) != expected:
        raise ShapeError(
            f"{_NAME}: q must have {expected} rows and columns, every {query_stride}. of k {list(k.shape)} by "
            f"query_stride, got {list(q.shape)}; use q[:, ::{query_stride}, ::{query_stride}]."
        )


def _check_tables(q: Tensor, tables: Tensor | None, window: int) -> None:
    if tables is None:
        return
    check_float(_NAME, "relative_embedding", tables, q)
    expected = [2, 2 * window - 1, q.shape[-1]]
    if list(tables.shape) != expected:
        raise ShapeError(
            f"{_NAME}: relative_embedding must be [2, 2 S - 1, K] = {expected} for windows of S = {window}, got "
            f"{list(tables.shape)}."
        )


def _tiled(x: Tensor, side: int) -> Tensor:
    """[B, rows, columns, ..] with zeros at the lower right, so that blocks of that side tile it."""
    return completed(x, 1, [whole(n, side) for n in x.shape[1:3]])


def _haloed(x: Tensor, halo: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, halo, halo, halo, halo))


def _real(x: Problem) -> Tensor:
    """Cells of the haloed map that lie on the map, bool [rows, columns]."""
    (rows, columns), halo = x.size, x.halo_size
    inside = torch.zeros(x.k.shape[1] + 2 * halo, x.k.shape[2] + 2 * halo, dtype=torch.bool, device=x.k.device)
    inside[halo : halo + rows, halo : halo + columns] = True
    return inside


def _define(x: Problem) -> Tensor:
    """Dense attention on the map with its halo, the bias of what a query does not see -inf."""
    k, v = (_haloed(t, x.halo_size) for t in (x.k, x.v))
    seen = torch.ones(k.shape[1:3], dtype=torch.bool, device=k.device) if x.border == "zero" else _real(x)
    place = []  # along both axes: for each query and each key of the line its place in the window, [n, m]
    for queries, keys in zip(x.q.shape[1:3], k.shape[1:3]):
        lines = [torch.arange(n, device=k.device) for n in (queries, keys)]
        place.append(lines[1] - (lines[0] // x.queries * x.block_size)[:, None])
    inside = [(p >= 0) & (p < x.window) for p in place]
    visible = inside[0][:, None, :, None] & inside[1][None, :, None, :] & seen  # [r, c, R, C]
    dtype = working_dtype(x.q)
    q = x.q.to(dtype)
    bias = torch.zeros((), dtype=dtype, device=x.q.device).expand(x.q.shape[0], x.q.shape[3], *visible.shape)
    for axis, table in enumerate(() if x.relative_embedding is None else x.relative_embedding):
        inner = torch.arange(len(place[axis]), device=k.device) % x.queries
        steps = inner * (1 if x.legacy_offsets else x.query_stride)
        rows = (place[axis] - steps[:, None] + x.window - 1).clamp(0, 2 * x.window - 2)
        product = torch.einsum("brchk,rmk->bhrcm" if axis == 0 else "brchk,cmk->bhrcm", q, table[rows].to(dtype))
        bias = bias + (product[..., None] if axis == 0 else product[..., None, :])
    mask = bias.masked_fill(~visible, float("-inf")).flatten(4, 5).flatten(2, 3)
    q, k, v = (t.flatten(1, 2) for t in (x.q, k, v))
    return torch.unflatten(dense(q, k, v, mask, x.scale)[0], 1, x.q.shape[1:3])


def _torch(x: Problem) -> Tensor:
    """One softmax attention a block; positions are further columns of queries and keys."""
    side, window, batch = x.queries, x.window, x.q.shape[0]
    axes = axes_of(_NAME, x.q.shape[1:3], "window", side, None)
    q, k, v = to_blocks(x.q, axes), _windows(x, x.k), _windows(x, x.v)
    q = torch.unflatten(q, 1, (side, side))  # [B n m, P, P, H, K]
    scale: float | None = x.scale
    if x.relative_embedding is not None:
        heights, widths = x.relative_embedding[:, x.offsets()].to(q.dtype)
        with full_precision(q):
            of_rows = torch.einsum("byxhk,ysk->byxhs", q, heights)
            of_columns = torch.einsum("byxhk,xsk->byxhs", q, widths)
            if not is_finite(of_rows, of_columns):  # columns are multiplied with zeros of other cells
                return _define(x)
            q, scale = torch.cat([q * x.scale, of_rows, of_columns], -1), 1.0
            k = torch.cat([k, _one_hot(window, k)], -1)
    mask = None
    if x.border == "mask":
        mask = _seen(x)[:, None, None]
    out: Tensor = softmax_attention(q.flatten(1, 2), k, v, attn_mask=mask, scale=scale, backend="torch")
    return from_blocks(out, axes, batch)


def _places(x: Problem) -> tuple[Tensor, Tensor]:
    """Rows and columns of the map that the windows hold, also beyond it: [n, S] and [m, S].

    Of a map of free size those of every cell of all windows: [n m S S] both.
    """
    blocks = [n // x.queries for n in x.q.shape[1:3]]
    if is_free(*blocks):
        *block, row, column = coordinates([*blocks, x.window, x.window], x.q.device)
        return block[0] * x.block_size + row - x.halo_size, block[1] * x.block_size + column - x.halo_size
    cells = torch.arange(x.window, device=x.q.device) - x.halo_size
    rows, columns = (torch.arange(n, device=x.q.device) * x.block_size for n in blocks)
    return rows[:, None] + cells, columns[:, None] + cells


def _seen(x: Problem) -> Tensor:
    """Which cells of its window lie on the map, for each block: [B n m, S S]."""
    rows, columns = ((p >= 0) & (p < n) for p, n in zip(_places(x), x.size))
    batch = x.q.shape[0]
    if rows.ndim == 1:
        return _in_windows(x, (rows & columns).expand(batch, -1))
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1).repeat(batch, 1)


def _in_windows(x: Problem, cells: Tensor) -> Tensor:
    """[B, n m S S, ..] of free sizes to [B n m, S S, ..]."""
    windows = prod([n // x.queries for n in x.q.shape[1:3]])
    return in_rows(cells, (cells.shape[0] * windows, x.window**2, *cells.shape[2:]))


def _windows(x: Problem, cells: Tensor) -> Tensor:
    """[B, rows, columns, H, D] to windows [B n m, S S, H, D] that overlap, a copy of each; beyond the map zeros.

    Where nobody sees beyond the map, what is there does not matter: the nearest cells then, which need no copy before.
    """
    halo = x.halo_size if x.border == "zero" else 0
    cells = _haloed(cells, halo) if halo else cells
    rows, columns = ((places + halo).clamp(0, n - 1) for places, n in zip(_places(x), cells.shape[1:3]))
    if rows.ndim == 1:
        return _in_windows(x, cells.flatten(1, 2).index_select(1, rows * cells.shape[2] + columns))
    for axis, index in ((1, rows), (3, columns)):
        cells = torch.unflatten(cells.index_select(axis, index.flatten()), axis, index.shape)
    return cells.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _one_hot(window: int, k: Tensor) -> Tensor:
    """For each cell of a window its row and its column, [.., S S, Hkv, 2 S]."""
    eye = torch.eye(window, dtype=k.dtype, device=k.device)
    rows, columns = eye.repeat_interleave(window, 0), eye.repeat(window, 1)
    return torch.cat([rows, columns], 1)[:, None].expand(*k.shape[:-1], -1)


_OPERATOR: Operator[Problem, Tensor] = Operator(
    _NAME, {"reference": Implementation(_define), "torch": Implementation(_torch)}
)
