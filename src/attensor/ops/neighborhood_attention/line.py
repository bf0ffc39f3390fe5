"""Neighbourhoods along a line in one call of the fused kernels: boxes of keys at equal distances are views.

    tile t of T:  queries t n / T .. (t + 1) n / T - 1,  keys t s .. t s + n - (T - 1) s - 1

The step s is the largest for which each box holds all that the queries of its tile see; the whole line is one tile.
Keys are copied for more than one sequence only. Sizes as in the package.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops._kept import kept
from attensor.ops.neighborhood_attention.neighborhood import Axis, key_range
from attensor.ops.neighborhood_attention.tiles import KEPT, costs_less_at_once
from attensor.ops.softmax_attention.fold import with_unit_stride

__all__ = ["Spacing", "attend_line", "line_backward", "spacing_of"]

_LEAST = 32  # queries of a tile: the kernels take as many at a time


class Spacing(NamedTuple):
    """Tiles of equal size along an axis, and a box of keys for each, one every `step` keys."""

    axis: Axis
    tiles: int
    step: int
    box: int


def spacing_of(tensors: Sequence[Tensor | None], axes: tuple[Axis, ...]) -> Spacing | None:
    """The cheapest spacing; None where the line is too long for one call, or the kernels do not compute this.

    Args:
        tensors: q, k, v [B, n, H, D]; bias, additional keys and values, and first keys, of which there must be none.
        axes: of the grid, undilated.
    """
    q, k, v, *more = tensors
    if q is None or k is None or v is None or len(axes) > 1 or any(x is not None for x in more):
        return None
    is_plain = q.shape == k.shape == v.shape and q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)
    return _cheapest(axes[0], q.shape[0] * q.shape[2]) if is_plain and q.numel() > 0 else None


@kept
def _cheapest(axis: Axis, rows: int) -> Spacing | None:
    n = axis.length
    if n * _LEAST > KEPT:
        return None
    counts = [1, *(tiles for tiles in range(2, n // _LEAST + 1) if n % tiles == 0)]
    best = min((_spaced(axis, tiles) for tiles in counts), key=lambda spacing: spacing.box)
    scores = n * best.box
    return best if scores <= KEPT and costs_less_at_once((axis,), scores, rows, is_fused=True) else None


def _spaced(axis: Axis, tiles: int) -> Spacing:
    n, tile = axis.length, axis.length // tiles
    seen = [(key_range(t * tile, axis)[0], key_range((t + 1) * tile - 1, axis)[1]) for t in range(tiles)]
    for step in range(tile, 0, -1):
        box = n - (tiles - 1) * step
        if all(t * step <= first and last <= t * step + box for t, (first, last) in enumerate(seen)):
            return Spacing(axis, tiles, step, box)
    return Spacing(axis, 1, 1, n)


# for a model of a few kinds of layers, in 32 MiB at most
@functools.lru_cache(maxsize=64)
def _mask(spacing: Spacing, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[T, 1, queries of a tile, keys of a box]: 0, or -inf where a query must not look."""
    axis, tiles, step, box = spacing
    first, last = key_range(torch.arange(axis.length, device=device).view(tiles, -1, 1), axis)
    keys = (step * torch.arange(tiles, device=device))[:, None, None] + torch.arange(box, device=device)
    closed = (keys < first) | (keys >= last)
    return torch.zeros(closed.shape, dtype=dtype, device=device).masked_fill_(closed, -math.inf)[:, None]


def attend_line(q: Tensor, k: Tensor, v: Tensor, spacing: Spacing, scale: float) -> tuple[Tensor, Tensor]:
    """out [B, n, H, D] and lse [B, n, H]."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _rows(q, spacing), _boxes(k, spacing), _boxes(v, spacing), 0.0, False,
        attn_mask=_masks(q, spacing), scale=scale,
    )  # fmt: skip
    return _joined(out, q.shape), _joined(lse, q.shape[:-1])


def line_backward(
    tensors: Sequence[Tensor], spacing: Spacing, scale: float, out: Tensor, lse: Tensor, of_out: Tensor
) -> list[Tensor]:
    """Gradients of q, k, v, of the results and the gradient of out."""
    q, k, v = tensors
    of_q, *of_keys = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _rows(of_out, spacing), _rows(q, spacing), _boxes(k, spacing), _boxes(v, spacing), _rows(out, spacing),
        lse.reshape(-1, q.shape[1] // spacing.tiles, q.shape[2]).transpose(1, 2), 0.0, False,
        attn_mask=_masks(q, spacing), scale=scale,
    )  # fmt: skip
    return [_joined(of_q, q.shape), *(_summed(part, k.shape, spacing) for part in of_keys)]


def _rows(x: Tensor, spacing: Spacing) -> Tensor:
    """[B, n, H, D] -> [B T, H, queries of a tile, D]."""
    batch, n, heads, width = x.shape
    tiles = spacing.tiles
    return with_unit_stride(x.reshape(batch * tiles, n // tiles, heads, width).transpose(1, 2))


def _boxes(x: Tensor, spacing: Spacing) -> Tensor:
    """[B, n, H, D] -> [B T, H, box, D], a view of one sequence."""
    return with_unit_stride(x.unfold(1, spacing.box, spacing.step).transpose(3, 4).flatten(0, 1))


def _masks(q: Tensor, spacing: Spacing) -> Tensor:
    """[B T, 1, queries of a tile, box]."""
    mask = _mask(spacing, q.dtype, q.device)
    return mask if q.shape[0] == 1 else mask.repeat(q.shape[0], 1, 1, 1)


def _joined(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """[B T, H, queries of a tile, ..] -> [B, n, H, ..]; a copy only where the kernel lays heads out first."""
    return rows.transpose(1, 2).contiguous().view(shape)


def _summed(part: Tensor, shape: Sequence[int], spacing: Spacing) -> Tensor:
    """Gradients of boxes [B T, H, box, D] to those of keys [B, n, H, D]."""
    if spacing.tiles == 1:
        return part.transpose(1, 2)
    total = part.new_zeros(shape)
    places = total.unfold(1, spacing.box, spacing.step).transpose(3, 4)  # [B, T, H, box, D]
    parts = part.view(places.shape)
    apart = -(-spacing.box // spacing.step)  # boxes so many tiles apart do not overlap
    for first in range(min(apart, spacing.tiles)):
        places[:, first::apart].add_(parts[:, first::apart])
    return total
