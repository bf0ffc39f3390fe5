"""How many keys a query of `neighborhood_attention` sees."""

from __future__ import annotations

from math import prod

from attensor.ops.neighborhood_attention.neighborhood import axes_of, keys_seen

__all__ = ["keys_per_query"]


def keys_per_query(
    space: tuple[int, ...],
    window_size: int | tuple[int, ...],
    *,
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
) -> int:
    """Mean number of keys that a query sees, rounded.

    Args:
        space: sizes of the grid.
        window_size: as in the operator, and so the others.
        dilation: see there.
        stride: see there.
        is_causal: see there.
    """
    axes = axes_of(space, window_size, dilation, stride, is_causal)
    return round(prod(keys_seen(axis) / axis.length for axis in axes))
