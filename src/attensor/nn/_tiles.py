"""How many keys the tiled operators multiply a query with: what a query sees, and what shares a tile with that."""

from __future__ import annotations

from attensor.ops.neighborhood_attention.neighborhood import axes_of
from attensor.ops.neighborhood_attention.tiles import runs

__all__ = ["keys_per_query"]


def keys_per_query(
    space: tuple[int, ...],
    window_size: int | tuple[int, ...],
    *,
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
) -> int:
    """Mean number of keys in the box of a query's tile in `neighborhood_attention`, rounded.

    Args:
        space: sizes of the grid.
        window_size: as in the operator, and so the others.
        dilation: see there.
        stride: see there.
        is_causal: see there.
    """
    mean = 1.0
    for axis in axes_of(space, window_size, dilation, stride, is_causal):
        pairs = 0
        for group in range(axis.dilation):
            length = -(-(axis.length - group) // axis.dilation)
            pairs += sum(run.count * run.tile * run.box for run in runs(axis.group(length), len(space)))
        mean *= pairs / axis.length
    return round(mean)
