"""A grid cut into blocks and put together again: a reshape and a permutation.

What blocks do not tile is completed by zeros. Where the number of blocks is free, cells are gathered (`_free_sizes`).
Sizes: B batch, S tokens in a block.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._free_sizes import (
    completed,
    coordinates,
    cropped,
    divided,
    gathered,
    in_rows,
    is_free,
    is_sure,
    whole,
)

__all__ = ["Axis", "axes_of", "from_blocks", "to_blocks"]


class Axis(NamedTuple):
    """How one axis is cut: its padded length is places * blocks; a token has a block, and a place inside the block."""

    length: int
    places: int
    blocks: int
    places_outside: bool  # token = place * blocks + block (grid), else block * places + place (window)

    @property
    def padded(self) -> int:
        return self.places * self.blocks

    @property
    def is_whole(self) -> bool:
        """Whether there is no padding; where the length is free, whether there never is."""
        return is_sure(self.padded == self.length)


def axes_of(
    name: str, space: tuple[int, ...], pattern: str, block_size: int | tuple[int, ...] | None, axis: int | None
) -> tuple[Axis, ...]:
    """How each axis of `space` is cut by a pattern of `block_attention`.

    Arguments and errors as there; `name` is the operator, for the messages.
    """
    rank = len(space)
    if pattern in ("window", "grid"):
        if block_size is None or axis is not None:
            raise ValueError(
                f'{name}: pattern="{pattern}" needs block_size and no axis, got block_size={block_size}, axis={axis}.'
            )
        sizes = tuple(block_size) if isinstance(block_size, (tuple, list)) else (block_size,) * rank
        if len(sizes) != rank or min(sizes) < 1:
            raise ShapeError(
                f"{name}: block_size must be {rank} positive integers, one for each space axis of q, or "
                f"one for all, got {block_size}."
            )
        return tuple(Axis(n, size, whole(n, size) // size, pattern == "grid") for n, size in zip(space, sizes))
    if pattern == "axial":
        if axis is None or block_size is not None or not -rank <= axis < rank:
            raise ValueError(
                f'{name}: pattern="axial" needs axis in [{-rank}, {rank - 1}] (among the space axes) and '
                f"no block_size, got axis={axis}, block_size={block_size}."
            )
        return tuple(Axis(n, n, 1, False) if i == axis % rank else Axis(n, 1, n, False) for i, n in enumerate(space))
    raise ValueError(f'{name}: pattern must be "window", "grid" or "axial", got {pattern!r}.')


def to_blocks(x: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """[B, *space, H, D] -> [B * blocks, S, H, D]."""
    rank, places = len(axes), prod([cut.places for cut in axes])
    rows = x.shape[0] * prod([cut.blocks for cut in axes])
    if _is_open(axes):
        return in_rows(_gathered_blocks(x, axes), (rows, places, *x.shape[-2:]))
    x = completed(x, 1, [cut.padded for cut in axes])
    sizes = [n for cut in axes for n in ((cut.places, cut.blocks) if cut.places_outside else (cut.blocks, cut.places))]
    block_dims = [1 + 2 * i + cut.places_outside for i, cut in enumerate(axes)]
    place_dims = [2 + 2 * i - cut.places_outside for i, cut in enumerate(axes)]
    x = x.reshape(x.shape[0], *sizes, *x.shape[-2:])
    x = x.permute(0, *block_dims, *place_dims, 1 + 2 * rank, 2 + 2 * rank)
    return x.reshape(rows, places, *x.shape[-2:])


def from_blocks(x: Tensor, axes: tuple[Axis, ...], batch: int) -> Tensor:
    """The inverse of `to_blocks`, padding cropped."""
    rank = len(axes)
    if _is_open(axes):
        return _gathered_cells(in_rows(x, (batch, prod([cut.padded for cut in axes]), *x.shape[-2:])), axes)
    x = x.reshape(batch, *[cut.blocks for cut in axes], *[cut.places for cut in axes], *x.shape[-2:])
    order = [
        dim
        for i, cut in enumerate(axes)
        for dim in ((1 + rank + i, 1 + i) if cut.places_outside else (1 + i, 1 + rank + i))
    ]
    x = x.permute(0, *order, 1 + 2 * rank, 2 + 2 * rank)
    x = x.reshape(batch, *[cut.padded for cut in axes], *x.shape[-2:])
    return cropped(x, 1, [cut.length for cut in axes])


def _is_open(axes: tuple[Axis, ...]) -> bool:
    """Whether the number of blocks of several cells is free."""
    return any(is_free(cut.blocks) and cut.places != 1 for cut in axes)


def _gathered_blocks(x: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """[B, *space, H, D] -> [B, blocks * S, H, D]."""
    found = coordinates([cut.blocks for cut in axes] + [cut.places for cut in axes], x.device)
    index, is_there = x.new_zeros((), dtype=torch.long), x.new_ones((), dtype=torch.bool)
    for cut, block, place in zip(axes, found, found[len(axes) :]):
        token = place * cut.blocks + block if cut.places_outside else block * cut.places + place
        index = index * cut.length + token.clamp(max=cut.length - 1)
        is_there = is_there & (token < cut.length)
    return gathered(x.flatten(1, -3), 1, index, is_there)


def _gathered_cells(x: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """[B, blocks * S, H, D] -> [B, *space, H, D]."""
    block = place = x.new_zeros((), dtype=torch.long)
    for cut, token in zip(axes, coordinates([cut.length for cut in axes], x.device)):
        parts = divided(token, cut.blocks if cut.places_outside else cut.places)
        at = parts[::-1] if cut.places_outside else parts
        block, place = block * cut.blocks + at[0], place * cut.places + at[1]
    x = x.index_select(1, block * prod([cut.places for cut in axes]) + place)
    return torch.unflatten(x, 1, [cut.length for cut in axes])
