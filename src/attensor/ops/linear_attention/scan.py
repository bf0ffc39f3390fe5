"""The recurrence over chunks: the only loop of `linear_attention`, in both directions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["scan"]


def scan(
    increments: Tensor,
    total: Tensor | None,
    table: Tensor,
    rows: Tensor | None,
    space: Tensor,
    *,
    reverse: bool = False,
) -> Tensor:
    """S <- total S + increment, chunk by chunk.

    Args:
        increments: [chunks, N, K, V].
        total: [chunks or 1, N, K or 1, 1]; None: 1.
        table: [R, N, K, V], the state of each row; moved on to what it is after the last chunk.
        rows: [chunks], the row that each chunk reads and writes; None: all use the only row.
        space: [chunks + 1, N, K, V], overwritten; the result is a part of it.
        reverse: last chunk first.
    Returns:
        The state that each chunk met [chunks, N, K, V].
    """
    count = increments.shape[0]
    steps, states = increments.unbind(), space.unbind()
    factors = None if total is None else total.unbind() * (count if total.shape[0] == 1 else 1)
    found, left = (1, 0) if reverse else (0, 1)
    if rows is None:
        states[count if reverse else 0].copy_(table[0])
    for chunk in range(count - 1, -1, -1) if reverse else range(count):
        before, after = states[chunk + found], states[chunk + left]
        if rows is not None:
            before.copy_(table.index_select(0, rows[chunk : chunk + 1])[0])
        if factors is None:
            torch.add(before, steps[chunk], out=after)
        else:
            torch.addcmul(steps[chunk], factors[chunk], before, out=after)
        if rows is not None:
            table.index_copy_(0, rows[chunk : chunk + 1], after[None])
    if rows is None:
        table[0].copy_(states[0 if reverse else count])
    return space[found : found + count]
