"""Tiled neighbourhood attention in PyTorch: one batched dense attention over many tiles, a bounded number at a time.

Forward keeps the log-sum-exp of each row; backward recomputes the weights from it (arXiv:2403.04690, section 3; the
equations are flash attention's). Dilation groups become a part of the batch first, so the tiles know no dilation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.ops.neighborhood_attention.function import NeighborhoodFunction
from attensor.ops.neighborhood_attention.neighborhood import Axis, axes_of

__all__ = ["neighborhood_attention_torch"]


def neighborhood_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    stride: int | tuple[int, ...],
    is_causal: bool | tuple[bool, ...],
    scale: float | None,
    relative_bias: Tensor | None,
    additional_keys: Tensor | None,
    additional_values: Tensor | None,
    return_lse: bool,
    cu_seqlens: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The tiled path. Same arguments and result as `neighborhood_attention`."""
    axes = axes_of(q.shape[1:-2], window_size, dilation, stride, is_causal)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    first_key = None if cu_seqlens is None else _first_key(cu_seqlens, axes[0].length)
    out, lse = _grouped(axes, scale, first_key, relative_bias, q, k, v, additional_keys, additional_values)
    return (out, lse) if return_lse else out


def _first_key(cu_seqlens: Tensor, length: int) -> Tensor:
    """[T] int64: where the packed sequence of each token starts."""
    token = torch.arange(length, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return cu_seqlens[torch.searchsorted(cu_seqlens, token, right=True) - 1].long()


def _grouped(
    axes: tuple[Axis, ...],
    scale: float,
    first_key: Tensor | None,
    relative_bias: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    additional_keys: Tensor | None,
    additional_values: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attend inside every dilation group of the first dilated axis; groups are a part of the batch."""
    dilated = next((i for i, axis in enumerate(axes) if axis.dilation > 1), None)
    if dilated is None:
        return NeighborhoodFunction.apply(  # type: ignore[no-untyped-call,no-any-return]
            q, k, v, relative_bias, additional_keys, additional_values, first_key, axes, scale
        )
    n, d = axes[dilated].length, axes[dilated].dilation
    longest, long_groups = -(-n // d), n % d or d
    padded = [F.pad(x, [0, 0] * (x.ndim - 2 - dilated) + [0, longest * d - n]) for x in (q, k, v)]
    folded = [torch.unflatten(x, 1 + dilated, (longest, d)) for x in padded]
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    # groups g < n mod d hold one token more than the others
    for start, count, length in ((0, long_groups, longest), (long_groups, d - long_groups, longest - 1)):
        if count == 0:
            continue
        of_groups = [x.narrow(2 + dilated, start, count).narrow(1 + dilated, 0, length) for x in folded]
        group = [x.movedim(2 + dilated, 1).flatten(0, 1) for x in of_groups]
        inner = (*axes[:dilated], axes[dilated].group(length), *axes[dilated + 1 :])
        extra = [None if x is None else x.repeat_interleave(count, 0) for x in (additional_keys, additional_values)]
        out, lse = _grouped(inner, scale, first_key, relative_bias, *group, *extra)
        for parts, x in zip(found, (out, lse)):
            x = torch.unflatten(x, 0, (q.shape[0], count)).movedim(1, 2 + dilated)
            parts.append(F.pad(x, [0, 0] * (x.ndim - 2 - dilated) + [0, longest - length]))
    out, lse = (
        torch.cat(parts, 2 + dilated).flatten(1 + dilated, 2 + dilated).narrow(1 + dilated, 0, n) for parts in found
    )
    return out, lse
