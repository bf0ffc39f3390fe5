"""Padding, cropping and regrouping of tensors whose sizes may be left open in a graph that is being exported.

Such a graph holds for every size that is allowed, so torch refuses to make it where it has to ask how many zeros
complete a block, whether there are any, or whether there is one block only. Rows and columns are gathered then, by an
index whose length is a multiple of the block's, and no axis is as long as the number of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["completed", "coordinates", "cropped", "divided", "gathered", "in_rows", "is_free", "is_sure", "whole"]


def is_free(*sizes: object) -> bool:
    """Whether one of these sizes is left open."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def is_sure(condition: object) -> bool:
    """Whether something holds for all values of free sizes; a plain bool is what it is."""
    if not isinstance(condition, torch.SymBool):
        return bool(condition)
    # here, because it takes a third of a second
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def whole(length: int, side: int) -> int:
    """The first multiple of `side` from `length` on; no number below 0 is divided, as ONNX rounds towards it."""
    return (length + side - 1) // side * side


def completed(x: Tensor, axis: int, sizes: Sequence[int], before: Sequence[int] = ()) -> Tensor:
    """The tensor with zeros around it; the tensor itself where it has these sizes already.

    Args:
        x: any tensor.
        axis: the first axis that grows; the next follow, one for each size.
        sizes: of these axes afterwards.
        before: zeros in front of what is there, on each of these axes; none if empty. The others come behind it.
    """
    lengths, before = x.shape[axis : axis + len(sizes)], before or [0] * len(sizes)
    if not is_free(*lengths):
        around = [n for size, length, start in zip(sizes, lengths, before) for n in (size - length - start, start)]
        pads = [0, 0] * (x.ndim - axis - len(sizes)) + around[::-1]
        return F.pad(x, pads) if any(pads) else x
    for at, (size, length, start) in enumerate(zip(sizes, lengths, before), axis):
        if not is_sure(size == length):
            place = torch.arange(size, device=x.device) - start
            x = gathered(x, at, place.clamp(0, length - 1), (place >= 0) & (place < length))
    return x


def cropped(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """The first so many places of an axis and of those that follow, one for each size."""
    if not is_free(*x.shape[axis : axis + len(sizes)]):
        return x[(*(slice(None),) * axis, *(slice(size) for size in sizes))]
    for at, size in enumerate(sizes, axis):
        if not is_sure(x.shape[at] == size):
            x = x.index_select(at, torch.arange(size, device=x.device))
    return x


def gathered(x: Tensor, axis: int, index: Tensor, is_there: Tensor) -> Tensor:
    """The places of an axis that an index names, zeros where nothing is."""
    found, is_there = x.index_select(axis, index), is_there[(..., *(None,) * (x.ndim - axis - 1))]
    # onnxruntime does not choose between booleans
    return found & is_there if x.dtype == torch.bool else torch.where(is_there, found, x.new_zeros(()))


def coordinates(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """Where the cells of a grid of these sizes lie along each axis, row by row: [cells] for each."""
    place, found = torch.arange(prod(sizes), device=device), []
    for size in reversed(sizes):
        place, rest = divided(place, size)
        found.append(rest)
    return found[::-1]


def divided(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of whole numbers from 0 on; no `%`, which ONNX does not have for a free size."""
    quotient = x // size
    return quotient, x - quotient * size


def in_rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same numbers in another shape: on the way over one axis and two torch asks for no size."""
    return x.contiguous().view(-1).view(shape[0], prod(shape[1:])).view(shape)
