"""The tiling: queries in tiles, and for each tile the smallest box of keys that its queries see.

Neighbouring tiles whose boxes lie alike (all but those at the borders) form a run and are computed at once. Everything
here is integers and views; nothing is computed on the tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from attensor.ops.neighborhood_attention.neighborhood import Axis, key_range

__all__ = [
    "KEPT",
    "Run",
    "add_boxes",
    "allowed_in_box",
    "boxes",
    "costs_less_at_once",
    "offsets_in_box",
    "pieces",
    "runs",
    "tiles",
    "whole",
]

# About 64 queries a tile: more wastes products on keys of the box that a query does not see, fewer starve the matrix
# product.
_TILE = {1: 64, 2: 8, 3: 4}
_CALL = 30_000  # scores that take as long as what is done for each piece beside its scores
KEPT = 2**16  # pairs of a mask that is not made anew


@dataclass(frozen=True)
class Run:
    """`count` tiles of `tile` queries from `query` on; tile c has the box of `box` keys at `key + c * tile`."""

    query: int
    tile: int
    count: int
    key: int
    box: int

    def part(self, start: int, count: int) -> Run:
        """The tiles from number `start` on, at most `count` of them."""
        step = start * self.tile
        return Run(self.query + step, self.tile, min(count, self.count - start), self.key + step, self.box)


def runs(axis: Axis, rank: int) -> list[Run]:
    """The runs along one axis of a grid of `rank` axes, in order."""
    tile = _tile(axis, rank)
    found = []
    start = 0
    while start < axis.length:
        size = min(tile, axis.length - start)
        count = 1
        while _is_inner(axis, start, tile) and _is_inner(axis, start + count * tile, tile):
            count += 1
        first, _ = key_range(start, axis)
        _, end = key_range(start + size - 1, axis)
        found.append(Run(start, size, count, first, end - first))
        start += size * count
    return found


def _tile(axis: Axis, rank: int) -> int:
    """Queries of a tile along an axis, so that all are as long: a shorter one would be a call of its own."""
    tiles = -(-axis.length // _TILE[rank])
    groups = -(-axis.length // (tiles * axis.stride))
    # a multiple of the stride, so that every inner tile holds whole stride groups and looks like the next one
    return min(axis.length, axis.stride * groups)


def whole(axes: tuple[Axis, ...]) -> tuple[Run, ...]:
    """One tile that is the grid."""
    return tuple(Run(0, axis.length, 1, 0, axis.length) for axis in axes)


@functools.cache
def costs_less_at_once(axes: tuple[Axis, ...], scores: int, rows: int, *, is_fused: bool) -> bool:
    """Whether so many scores in one call are cheaper than those of the tiles, for so many heads of the whole batch.

    Costs are in scores of a whole grid, measured: with 32 channels a score takes a fused kernel two nanoseconds.
    """
    dearer = (1.8 if len(axes) == 1 else 2.2) if is_fused else 1.2  # keys of tiles are copied, and products are small
    along = [runs(axis, len(axes)) for axis in axes]
    of_tiles = prod(sum(run.count * run.tile * run.box for run in some) for some in along)
    calls = prod(map(len, along))
    return rows * scores <= dearer * rows * of_tiles + _CALL * calls


def pieces(combination: tuple[Run, ...], limit: int) -> list[tuple[Run, ...]]:
    """The tiles of a combination of runs in pieces of at most `limit` (at least one) tiles."""
    parts: list[list[Run]] = []
    for run in reversed(combination):
        count = min(run.count, max(1, limit))
        limit //= count
        parts.insert(0, [run.part(start, count) for start in range(0, run.count, count)])
    return list(product(*parts))


def allowed_in_box(axes: tuple[Axis, ...], combination: tuple[Run, ...], device: torch.device) -> Tensor:
    """[queries in a tile, keys in a box] bool, the same for every tile of the combination."""
    allowed = torch.ones(1, 1, dtype=torch.bool, device=device)
    for axis, run in zip(axes, combination):
        keys = run.key + torch.arange(run.box, device=device)
        first, end = key_range(run.query + torch.arange(run.tile, device=device)[:, None], axis)
        along = (keys >= first) & (keys < end)
        allowed = (allowed[:, None, :, None] & along[:, None]).flatten(2, 3).flatten(0, 1)  # Kronecker product
    return allowed


def offsets_in_box(axes: tuple[Axis, ...], combination: tuple[Run, ...], device: torch.device) -> Tensor:
    """[queries in a tile, keys in a box] int64: the entry of the flattened bias table that belongs to each pair."""
    index = torch.zeros(1, 1, dtype=torch.long, device=device)
    for axis, run in zip(axes, combination):
        keys = run.key - run.query + torch.arange(run.box, device=device)
        offset = keys - torch.arange(run.tile, device=device)[:, None] + axis.window - 1
        offset = offset.clamp(0, 2 * axis.window - 2)  # pairs out of reach are masked; they only need a valid index
        index = (index[:, None, :, None] * (2 * axis.window - 1) + offset[:, None]).flatten(2, 3).flatten(0, 1)
    return index


def tiles(x: Tensor, piece: tuple[Run, ...]) -> Tensor:
    """View [B, Hkv, R, *space, D] -> [B, Hkv, *counts, R, *tiles, D]; writable, tiles do not overlap."""
    rank = len(piece)
    for i, run in enumerate(piece):
        dim = 3 + 2 * i
        x = torch.unflatten(x.narrow(dim, run.query, run.count * run.tile), dim, (run.count, run.tile))
    return x.permute(0, 1, *range(3, 3 + 2 * rank, 2), 2, *range(4, 4 + 2 * rank, 2), 3 + 2 * rank)


def boxes(x: Tensor, piece: tuple[Run, ...]) -> Tensor:
    """[B, Hkv, *space, D] -> copy [B, Hkv, tiles, keys in a box, D]."""
    rank = len(piece)
    for i, run in enumerate(piece):
        x = x.narrow(2 + i, run.key, (run.count - 1) * run.tile + run.box).unfold(2 + i, run.box, run.tile)
    x = x.permute(*range(2 + rank), *range(3 + rank, 3 + 2 * rank), 2 + rank)
    return x.reshape(*x.shape[:2], prod([run.count for run in piece]), prod([run.box for run in piece]), x.shape[-1])


def add_boxes(total: Tensor, part: Tensor, piece: tuple[Run, ...]) -> None:
    """Add [B, Hkv, tiles, keys in a box, D] to where the boxes lie in [B, Hkv, *padded space, D], in place.

    Boxes overlap, so they are cut into strips of one tile's length, which do not: a strip of all boxes is one addition.
    Each axis of `total` with runs of several tiles has room for one tile more than its tokens.
    """
    rank = len(piece)
    part = torch.unflatten(torch.unflatten(part, 3, [run.box for run in piece]), 2, [run.count for run in piece])
    order = [0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2), 2 + 2 * rank]
    strips = [run.tile if run.count > 1 else run.box for run in piece]
    for starts in product(*(range(0, run.box, strip) for run, strip in zip(piece, strips))):
        target, source = total, part
        for i, (run, start, strip) in enumerate(zip(piece, starts, strips)):
            dim, size = 2 + 2 * i, min(strip, run.box - start)
            target = target.narrow(dim, run.key + start, run.count * strip)
            target = torch.unflatten(target, dim, (run.count, strip)).narrow(dim + 1, 0, size)
            source = source.narrow(2 + rank + i, start, size)
        target.permute(order).add_(source)


def _is_inner(axis: Axis, start: int, tile: int) -> bool:
    """Whether no leader and no window of the tile was moved by a border: such tiles look all the same."""
    n, window, stride = axis.length, axis.window, axis.stride
    if start + tile > n:
        return False
    if axis.is_causal:
        return start + stride - window >= 0
    last_leader = start + tile - stride + stride // 2
    return start + stride // 2 >= window // 2 and last_leader - window // 2 + window <= n
