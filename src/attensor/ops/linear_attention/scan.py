"""The recurrence over chunks: the only loop of `linear_attention`, in both directions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["scan"]


def scan(
    increments: Tensor, total: Tensor | None, table: Tensor, rows: Tensor | None, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """S <- total S + increment, chunk by chunk.

    Args:
        increments: [chunks, N, K, V].
        total: [chunks or 1, N, K or 1, 1]; None: 1.
        table: [R, N, K, V], the state of each row before the first chunk; overwritten when `rows` is given.
        rows: [chunks], the row that each chunk reads and writes; None: all use the only row.
        reverse: last chunk first.
    Returns:
        The state that each chunk met [chunks, N, K, V], and the table after the last one.
    """
    met = []
    state = table[0]
    count = increments.shape[0]
    for chunk in range(count - 1, -1, -1) if reverse else range(count):
        if rows is not None:
            state = table.index_select(0, rows[chunk : chunk + 1])[0]
        met.append(state)
        if total is None:
            state = state + increments[chunk]
        else:
            state = torch.addcmul(increments[chunk], total[chunk if total.shape[0] > 1 else 0], state)
        if rows is not None:
            table.index_copy_(0, rows[chunk : chunk + 1], state[None])
    if reverse:
        met.reverse()
    return torch.stack(met), state[None] if rows is None else table
