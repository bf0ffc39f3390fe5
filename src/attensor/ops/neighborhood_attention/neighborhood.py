"""Which keys a query sees along one axis: the definition of the neighbourhood, and the check of its parameters."""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeVar

from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._kept import kept

__all__ = ["Axis", "axes_of", "key_range", "keys_seen"]

_NAME = "neighborhood_attention"
_NAMES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}

Index = TypeVar("Index", int, Tensor)


class Axis(NamedTuple):
    """One axis of the grid: its length and the neighbourhood along it."""

    length: int
    window: int
    dilation: int
    stride: int
    is_causal: bool
    is_cut: bool = False  # at borders, instead of shifted

    def group(self, length: int) -> Axis:
        """The axis inside one dilation group, which holds `length` of the tokens."""
        return self._replace(length=length, dilation=1)


def key_range(query: Index, axis: Axis) -> tuple[Index, Index]:
    """First key and one past the last key that `query` sees, counted inside its dilation group.

    Args:
        query: position inside the dilation group, one integer or a tensor of them.
        axis: an axis whose length is that of the dilation group.
    Source: arXiv:2204.07143 (window shifted inwards at borders), arXiv:2504.16922 (stride, leader of a group).
    """
    n, window, stride = axis.length, axis.window, axis.stride
    if axis.is_cut and not axis.is_causal:
        first = query // stride * stride + stride // 2 - window // 2
        return _clamp(first, 0, n), _clamp(first + window, 0, n)
    if axis.is_causal:
        leader = _clamp(query // stride * stride + stride - 1, 0, n - 1)
        return _clamp(leader - window + 1, 0, n), query + 1
    leader = _clamp(query // stride * stride + stride // 2, 0, n - 1)
    first = _clamp(leader - window // 2, 0, n - window)
    return first, first + window


@functools.cache
def keys_seen(axis: Axis) -> int:
    """Pairs of a query and a key that it sees along one axis."""
    pairs = 0
    for remainder in range(min(axis.dilation, axis.length)):
        group = axis.group(len(range(remainder, axis.length, axis.dilation)))
        ranges = (key_range(query, group) for query in range(group.length))
        pairs += sum(end - first for first, end in ranges)
    return pairs


@kept
def axes_of(
    space: tuple[int, ...],
    window_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    stride: int | tuple[int, ...],
    is_causal: bool | tuple[bool, ...],
    border: str = "shift",
) -> tuple[Axis, ...]:
    """One `Axis` for each size in `space`, with every parameter checked.

    Raises:
        ShapeError: a window, dilated, is larger than its axis, where it is shifted, or the number of parameters is not
            that of the axes.
        ValueError: a parameter is below 1, or a stride larger than its window.
    """
    rank = len(space)
    given = {"window_size": window_size, "dilation": dilation, "stride": stride, "is_causal": is_causal}
    windows, dilations, strides, causal = (_per_axis(label, value, rank) for label, value in given.items())
    axes = tuple(
        Axis(n, int(w), int(d), int(s), bool(c), border == "truncate")
        for n, w, d, s, c in zip(space, windows, dilations, strides, causal)
    )
    for name, axis in zip(_NAMES[rank], axes):
        _check_axis(name, space, axis)
    return axes


def _check_axis(name: str, space: tuple[int, ...], axis: Axis) -> None:
    length, window, dilation, stride, is_causal, is_cut = axis
    for label, value in (("window_size", window), ("dilation", dilation), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{_NAME}: {label} must be at least 1, got {value} along the {name}.")
    if not (is_causal or is_cut) and window * dilation > length:  # causal windows are cut at the start of their axis
        dilated = f" with dilation {dilation} reaches over {window * dilation} tokens, which" if dilation > 1 else ""
        smaller = f"window_size <= {length // dilation}" if dilation <= length else f"dilation <= {length // window}"
        raise ShapeError(
            f"{_NAME}: window_size {window}{dilated} is larger than the {name} {length} of q's grid "
            f'{list(space)}; use {smaller} or border="truncate".'
        )
    if stride > window:
        raise ValueError(
            f"{_NAME}: stride {stride} is larger than window_size {window} along the {name}, so some keys "
            f"would be seen by no query; use stride <= {window}."
        )


def _per_axis(label: str, value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        return (value,) * rank
    if len(value) != rank:
        raise ShapeError(f"{_NAME}: {label} must be one value or {rank}, one for each space axis of q, got {value}.")
    return tuple(value)


def _clamp(value: Index, low: int, high: int) -> Index:
    return value.clamp(low, high) if isinstance(value, Tensor) else max(low, min(value, high))
