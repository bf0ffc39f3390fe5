"""`torch.vmap` over operators that have a batch dimension: what is vmapped is more batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

__all__ = ["fold_batch"]


def fold_batch(
    apply: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: Sequence[Any],
    arguments: Sequence[Any],
    batch_dims: Sequence[int | None],
    out_batch_dims: Sequence[int],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Call `apply` with dimension `in_dims[i]` of each tensor merged into its batch dimension `batch_dims[i]`."""
    merged = list(arguments)
    batch = arguments[0].movedim(in_dims[0] or 0, 0).shape[0 if in_dims[0] is None else 1]
    for index, batch_dim in enumerate(batch_dims):
        if isinstance(merged[index], Tensor):
            merged[index] = _merge(merged[index], in_dims[index], (size, batch), batch_dim)
    results = apply(*merged)
    dims = tuple(out_batch_dims[: len(results)])
    return tuple(r.view(*r.shape[:d], size, r.shape[d] // size, *r.shape[d + 1 :]) for r, d in zip(results, dims)), dims


def _merge(x: Tensor, in_dim: int | None, sizes: tuple[int, int], batch_dim: int | None) -> Tensor:
    if batch_dim is None:
        if in_dim is not None:
            raise NotImplementedError("linear_attention: no vmap over cu_seqlens; put all sequences into one packing.")
        return x
    x = x.unsqueeze(batch_dim) if in_dim is None else x.movedim(in_dim, batch_dim)
    # a constant decay comes as a batch of 1; the engine sums its gradient back to that
    return x.expand(*x.shape[:batch_dim], *sizes, *x.shape[batch_dim + 2 :]).flatten(batch_dim, batch_dim + 1)
