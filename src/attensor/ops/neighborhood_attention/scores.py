"""A bounded number of tiles at a time: their queries, the keys and values of their boxes, and the scores between them.

Scores are kept in base 2, s * log2(e): on a CPU exp of a masked score (-inf) takes over 10 times as long as exp2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from itertools import product
from math import e, log2, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.ops._precision import working_dtype
from attensor.ops.neighborhood_attention.neighborhood import Axis
from attensor.ops.neighborhood_attention.tiles import (
    Run,
    allowed_in_box,
    boxes,
    costs_less_whole,
    offsets_in_box,
    pieces,
    runs,
    tiles,
    whole,
)

__all__ = [
    "LOG2_E",
    "Operands",
    "Piece",
    "cut",
    "is_whole",
    "layout",
    "put_rows",
    "rows_of",
    "scores_of",
    "split_heads",
    "tiling",
]

LOG2_E = log2(e)

# Scores held at once: 1 MiB in float32, which stay in a core's cache.
_SCORES = 2**18
_KEPT = 2**16  # pairs of a layout that is not made anew


class Operands(NamedTuple):
    """The inputs as views with heads first; R query heads share a key/value head; everything is in input dtype."""

    q: Tensor  # [B, Hkv, R, *space, K]
    k: Tensor  # [B, Hkv, *space, K]
    v: Tensor  # [B, Hkv, *space, V]
    bias: Tensor | None  # [Hkv, R, *(2 w - 1)]
    extra_k: Tensor | None  # [B, Hkv, E, K]
    extra_v: Tensor | None  # [B, Hkv, E, V]
    first_key: Tensor | None  # [T]

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None) -> Operands:
        """From q, k, v, bias [1, H, ..], extra_k, extra_v, first_key with heads last."""
        bias, extra_k, extra_v, first_key = rest
        kv_heads = k.shape[-2]
        return cls(
            split_heads(q, kv_heads),
            k.movedim(-2, 1),
            v.movedim(-2, 1),
            None if bias is None else torch.unflatten(bias[0], 0, (kv_heads, -1)),
            None if extra_k is None else extra_k.transpose(1, 2),
            None if extra_v is None else extra_v.transpose(1, 2),
            first_key,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of scores and sums: at least float32."""
        return working_dtype(self.q)


class Piece(NamedTuple):
    """Some tiles of some batch entries, and what is added to their scores."""

    batch: slice
    runs: tuple[Run, ...]
    added: Tensor  # [Hkv or 1, 1, R or 1, queries in a tile, keys in a box + E]; -inf where a query must not look
    offsets: Tensor | None  # [queries in a tile, keys in a box]: entries of the bias table

    @property
    def box(self) -> int:
        """Keys in a box, without the additional ones."""
        return prod([run.box for run in self.runs])

    @property
    def tiles(self) -> int:
        """Tiles of one batch entry."""
        return prod([run.count for run in self.runs])


def split_heads(x: Tensor, kv_heads: int) -> Tensor:
    """View [B, *space, H, D] -> [B, Hkv, R, *space, D]."""
    return torch.unflatten(x.movedim(-2, 1), 1, (kv_heads, -1))


def cut(x: Operands, axes: tuple[Axis, ...], base: float = LOG2_E) -> Iterator[Piece]:
    """All tiles of all batch entries, each once, in pieces of about `_SCORES` scores; what is added times `base`."""
    batch, heads = x.q.shape[0], x.q.shape[1] * x.q.shape[2]
    extra = 0 if x.extra_k is None else x.extra_k.shape[2]
    for combination in product(*tiling(x, axes)):
        closed, entries = layout(axes, combination, extra, x.dtype, x.q.device)
        added, offsets = closed[None, None, None], None
        if x.bias is not None:
            offsets = entries
            of_pairs = x.bias.flatten(2)[:, :, entries].to(x.dtype) * base
            added = closed + F.pad(of_pairs, (0, extra))[:, None]
        tile_scores = max(1, heads * closed.numel())
        rows = max(1, min(batch, _SCORES // tile_scores))
        for part in pieces(combination, _SCORES // (tile_scores * rows)):
            for start in range(0, batch, rows):
                yield Piece(slice(start, start + rows), part, added, offsets)


def is_whole(x: Operands, axes: tuple[Axis, ...], *, is_fused: bool = False) -> bool:
    """Whether the grid is one tile."""
    rows = x.q.shape[0] * x.q.shape[1] * x.q.shape[2]
    return x.first_key is None and costs_less_whole(axes, rows, is_fused=is_fused)


def tiling(x: Operands, axes: tuple[Axis, ...]) -> list[list[Run]]:
    """The runs along each axis."""
    if is_whole(x, axes):
        return [[run] for run in whole(axes)]
    return [runs(axis, len(axes)) for axis in axes]


def layout(
    axes: tuple[Axis, ...], combination: tuple[Run, ...], extra: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is added to scores [queries in a tile, keys in a box + E]: 0 or -inf; and the bias entry of each pair."""
    pairs = prod(run.tile * run.box for run in combination)
    return (_kept_layout if pairs <= _KEPT else _layout)(axes, combination, extra, dtype, device)


def _layout(
    axes: tuple[Axis, ...], combination: tuple[Run, ...], extra: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    allowed = allowed_in_box(axes, combination, device)
    closed = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -math.inf)
    return F.pad(closed, (0, extra)), offsets_in_box(axes, combination, device)


# for a model of a few kinds of layers, in 50 MiB at most
_kept_layout = functools.lru_cache(maxsize=64)(_layout)


def rows_of(x: Tensor, piece: Piece, dtype: torch.dtype) -> Tensor:
    """[B, Hkv, R, *space, D] -> [M, R * queries, D], M = batch x kv heads x tiles; may share memory with x."""
    view = tiles(x[piece.batch], piece.runs)
    rank = len(piece.runs)
    return view.reshape(prod(view.shape[: 2 + rank]), prod(view.shape[2 + rank : -1]), view.shape[-1]).to(dtype)


def put_rows(x: Tensor, piece: Piece, rows: Tensor) -> None:
    """Write [M, R * queries, D] to where the tiles lie in [B, Hkv, R, *space, D]."""
    view = tiles(x[piece.batch], piece.runs)
    view.copy_(rows.view(view.shape))


def scores_of(x: Operands, piece: Piece, scale: float, is_confined: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Scores in base 2 [M, R * queries, keys + E], and the keys and values [M, keys + E, K or V].

    Confined: a key that is NaN gives the score -inf where it is not seen, and a row whose visible keys all score -inf
    is NaN: it is not the row that sees nothing.
    """
    keys, values = _keys(x.k, x.extra_k, piece, x.dtype), _keys(x.v, x.extra_v, piece, x.dtype)
    # the base is changed last: scores that are equal stay so, however large
    scores = torch.bmm(rows_of(x.q, piece, x.dtype) * scale, keys.flatten(0, 2).mT).mul_(LOG2_E)
    view = scores.view(*keys.shape[:3], x.q.shape[2], -1, keys.shape[3])  # [B, Hkv, tiles, R, queries, keys + E]
    view += piece.added
    closed = piece.added == -math.inf
    if is_confined:
        view.masked_fill_(closed, -math.inf)
    if x.first_key is not None:
        run = piece.runs[0]
        step = run.tile * torch.arange(run.count, device=scores.device)[:, None]
        place = run.key + step + torch.arange(run.box, device=scores.device)
        first = x.first_key.narrow(0, run.query, run.count * run.tile).view(run.count, run.tile)
        before = place[:, None, :] < first[..., None]  # [tiles, queries, keys]
        view[..., : run.box].masked_fill_(before[:, None], float("-inf"))
        closed = closed | F.pad(before, (0, view.shape[-1] - run.box))[:, None]
    if is_confined:
        lost = (view == -math.inf).all(-1, keepdim=True) & ~closed
        view.masked_fill_(lost, math.nan)
    return scores, keys.flatten(0, 2), values.flatten(0, 2)


def _keys(x: Tensor, extra: Tensor | None, piece: Piece, dtype: torch.dtype) -> Tensor:
    """[B, Hkv, tiles, keys + E, D]."""
    found = boxes(x[piece.batch], piece.runs).to(dtype)
    if extra is None:
        return found
    more = extra[piece.batch, :, None].to(dtype).expand(-1, -1, found.shape[2], -1, -1)
    return torch.cat([found, more], 3)
