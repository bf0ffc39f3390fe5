"""A grid cut into blocks and put together again: a reshape and a permutation.

Sizes: B batch, S tokens in a block.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from attensor.errors import ShapeError

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
        return tuple(Axis(n, size, -(-n // size), pattern == "grid") for n, size in zip(space, sizes))
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
    rank = len(axes)
    after = [size for cut in reversed(axes) for size in (0, cut.padded - cut.length)]
    if any(after):
        x = F.pad(x, [0, 0, 0, 0, *after])
    sizes = [n for cut in axes for n in ((cut.places, cut.blocks) if cut.places_outside else (cut.blocks, cut.places))]
    block_dims = [1 + 2 * i + cut.places_outside for i, cut in enumerate(axes)]
    place_dims = [2 + 2 * i - cut.places_outside for i, cut in enumerate(axes)]
    x = x.reshape(x.shape[0], *sizes, *x.shape[-2:])
    x = x.permute(0, *block_dims, *place_dims, 1 + 2 * rank, 2 + 2 * rank)
    rows = x.shape[0] * prod([cut.blocks for cut in axes])
    return x.reshape(rows, prod([cut.places for cut in axes]), *x.shape[-2:])


def from_blocks(x: Tensor, axes: tuple[Axis, ...], batch: int) -> Tensor:
    """The inverse of `to_blocks`, padding cropped."""
    rank = len(axes)
    x = x.reshape(batch, *[cut.blocks for cut in axes], *[cut.places for cut in axes], *x.shape[-2:])
    order = [
        dim
        for i, cut in enumerate(axes)
        for dim in ((1 + rank + i, 1 + i) if cut.places_outside else (1 + i, 1 + rank + i))
    ]
    x = x.permute(0, *order, 1 + 2 * rank, 2 + 2 * rank)
    x = x.reshape(batch, *[cut.padded for cut in axes], *x.shape[-2:])
    return x[(slice(None), *(slice(cut.length) for cut in axes))]
