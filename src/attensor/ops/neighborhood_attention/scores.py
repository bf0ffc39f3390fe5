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
    KEPT,
    Run,
    add_boxes,
    allowed_in_box,
    boxes,
    costs_less_at_once,
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
    "add_to_boxes",
    "boxes_of",
    "cut",
    "is_whole",
    "layout",
    "of_each_pair",
    "put_rows",
    "rows_of",
    "scores_of",
    "split_heads",
    "tiling",
]

LOG2_E = log2(e)

# Scores held at once: 2 MiB in float32. More leave the cache, and fewer take as long as what is done for each piece.
_SCORES = 2**19


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
            of_pairs = of_each_pair(x.bias, entries).to(x.dtype) * base
            # hidden pairs stay hidden, whatever their entry of the table is
            added = F.pad(of_pairs, (0, extra))[:, None].masked_fill(closed == -math.inf, -math.inf)
        tile_scores = max(1, heads * closed.numel())
        rows = max(1, min(batch, _SCORES // tile_scores))
        for part in pieces(combination, _SCORES // (tile_scores * rows)):
            for start in range(0, batch, rows):
                yield Piece(slice(start, start + rows), part, added, offsets)


def is_whole(x: Operands, axes: tuple[Axis, ...], *, is_fused: bool = False) -> bool:
    """Whether the grid is one tile."""
    rows = x.q.shape[0] * x.q.shape[1] * x.q.shape[2]
    scores = prod([axis.length for axis in axes]) ** 2
    return x.first_key is None and costs_less_at_once(axes, scores, rows, is_fused=is_fused)


def tiling(x: Operands, axes: tuple[Axis, ...]) -> list[list[Run]]:
    """The runs along each axis."""
    if is_whole(x, axes):
        return [[run] for run in whole(axes)]
    return [runs(axis, len(axes)) for axis in axes]


def of_each_pair(bias: Tensor, entries: Tensor) -> Tensor:
    """[Hkv, R, *(2 w - 1)] at entries [queries, keys] of the flattened table: [Hkv, R, queries, keys]."""
    table = bias.flatten(2).flatten(0, 1)  # of two axes, of which torch knows a faster way than of more
    return table.index_select(1, entries.flatten()).view(*bias.shape[:2], *entries.shape)


def layout(
    axes: tuple[Axis, ...], combination: tuple[Run, ...], extra: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is added to scores [queries in a tile, keys in a box + E]: 0 or -inf; and the bias entry of each pair."""
    pairs = prod(run.tile * run.box for run in combination)
    return (_kept_layout if pairs <= KEPT else _layout)(axes, combination, extra, dtype, device)


def _layout(
    axes: tuple[Axis, ...], combination: tuple[Run, ...], extra: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    allowed = allowed_in_box(axes, combination, device)
    closed = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -math.inf)
    return F.pad(closed, (0, extra)), offsets_in_box(axes, combination, device)


# for a model of a few kinds of layers, in 50 MiB at most
_kept_layout = functools.lru_cache(maxsize=64)(_layout)


def rows_of(x: Tensor, piece: Piece) -> Tensor:
    """[B, Hkv, R, *space, D] -> [Hkv, B * tiles, R * queries, D]; may share memory with x."""
    view = tiles(x[piece.batch].transpose(0, 1), piece.runs)
    outer = 2 + len(piece.runs)
    return view.reshape(view.shape[0], prod(view.shape[1:outer]), prod(view.shape[outer:-1]), view.shape[-1])


def put_rows(x: Tensor, piece: Piece, rows: Tensor) -> None:
    """Write [Hkv, B * tiles, R * queries, D] to where the tiles lie in [B, Hkv, R, *space, D]."""
    view = tiles(x[piece.batch].transpose(0, 1), piece.runs)
    view.copy_(rows.reshape(view.shape))


def boxes_of(x: Tensor, extra: Tensor | None, piece: Piece) -> Tensor:
    """[B, Hkv, *space, D] and additional [B, Hkv, E, D] -> [Hkv, B * tiles, keys + E, D]."""
    found = boxes(x[piece.batch].transpose(0, 1), piece.runs)
    if extra is not None:
        more = extra[piece.batch].transpose(0, 1)[:, :, None].expand(-1, -1, found.shape[2], -1, -1)
        found = torch.cat([found, more], 3)
    return found.flatten(1, 2)


def add_to_boxes(x: Tensor, extra: Tensor | None, part: Tensor, piece: Piece) -> None:
    """Add [Hkv, B * tiles, keys + E, D] to the keys [B, Hkv, *padded space, D] in the boxes, and to the additional."""
    part = torch.unflatten(part, 1, (-1, piece.tiles)).transpose(0, 1)  # [B, Hkv, tiles, keys + E, D]
    add_boxes(x[piece.batch], part[:, :, :, : piece.box], piece.runs)
    if extra is not None:
        extra[piece.batch] += part[:, :, :, piece.box :].sum(2)


def scores_of(
    x: Operands, piece: Piece, scale: float, is_confined: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Scores in base 2 [Hkv, B * tiles, R * queries, keys + E], and the scaled queries, the keys and the values.

    Confined: a key that is NaN gives the score -inf where it is not seen, and a row whose visible keys all score -inf
    is NaN: it is not the row that sees nothing.
    """
    keys, values = (boxes_of(t, e, piece).to(x.dtype) for t, e in ((x.k, x.extra_k), (x.v, x.extra_v)))
    queries = rows_of(x.q, piece).to(x.dtype) * scale
    # the base is changed last: scores that are equal stay so, however large
    scores = torch.matmul(queries, keys.mT).mul_(LOG2_E)
    view = torch.unflatten(scores, 2, (x.q.shape[2], -1))  # [Hkv, B * tiles, R, queries, keys + E]
    view += piece.added
    closed = piece.added == -math.inf
    if is_confined:
        view.masked_fill_(closed, -math.inf)
    if x.first_key is not None:
        before = _before(x.first_key, piece).repeat(scores.shape[1] // piece.tiles, 1, 1, 1)
        view[..., : piece.box].masked_fill_(before, -math.inf)
        closed = closed | F.pad(before, (0, view.shape[-1] - piece.box))
    if is_confined:
        lost = (view == -math.inf).all(-1, keepdim=True) & ~closed
        view.masked_fill_(lost, math.nan)
    return scores, (queries, keys, values)


def _before(first_key: Tensor, piece: Piece) -> Tensor:
    """Which keys of a box come before the first that a query may see: [tiles, 1, queries, keys]."""
    (run,) = piece.runs
    places = run.tile * torch.arange(run.count, device=first_key.device)[:, None]
    keys = run.key + places + torch.arange(run.box, device=first_key.device)
    first = first_key.narrow(0, run.query, run.count * run.tile).view(run.count, 1, run.tile, 1)
    return keys[:, None, None, :] < first
