"""The definition of neighbourhood attention: dense attention under a boolean mask."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops.neighborhood_attention.neighborhood import Axis, axes_of, key_range
from attensor.ops.softmax_attention import softmax_attention_reference

__all__ = ["neighborhood_attention_reference"]


def neighborhood_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    scale: float | None = None,
    relative_bias: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax over the keys that every axis allows. Same arguments and result as `neighborhood_attention`; O(n^2)."""
    space = q.shape[1:-2]
    axes = axes_of(space, window_size, dilation, stride, is_causal)
    allowed = torch.ones(1, 1, dtype=torch.bool, device=q.device)
    for axis in axes:
        along = _allowed_along(axis, q.device)
        allowed = (allowed[:, None, :, None] & along[:, None]).flatten(2, 3).flatten(0, 1)  # Kronecker product
    if cu_seqlens is not None:
        token = torch.arange(space[0], device=q.device, dtype=cu_seqlens.dtype)
        sequence = torch.searchsorted(cu_seqlens, token, right=True)
        allowed = allowed & (sequence[:, None] == sequence)
    mask = torch.zeros(1, 1, 1, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    if relative_bias is not None:
        mask = relative_bias.flatten(1)[:, _offsets(axes, q.device)].to(mask.dtype)  # [H, n, n]
    mask = mask.masked_fill(~allowed, float("-inf"))

    q, k, v = (t.flatten(1, -3) for t in (q, k, v))
    if additional_keys is not None and additional_values is not None:
        k, v = torch.cat([k, additional_keys], 1), torch.cat([v, additional_values], 1)
        mask = torch.nn.functional.pad(mask, (0, additional_keys.shape[1]))
    out, lse = softmax_attention_reference(q, k, v, scale=scale, attn_mask=mask, return_lse=True)
    out, lse = torch.unflatten(out, 1, space), torch.unflatten(lse, 1, space)
    return (out, lse) if return_lse else out


def _allowed_along(axis: Axis, device: torch.device) -> Tensor:
    """[n, n] bool for one axis: same dilation group, and inside the query's range there."""
    x = torch.arange(axis.length, device=device)
    group, place = x % axis.dilation, x // axis.dilation
    allowed = group[:, None] == group
    for remainder in range(axis.dilation):
        members = len(range(remainder, axis.length, axis.dilation))
        first, end = key_range(place, axis.group(members))
        inside = (place >= first[:, None]) & (place < end[:, None])
        allowed = allowed & (inside | (group != remainder)[:, None])
    return allowed


def _offsets(axes: tuple[Axis, ...], device: torch.device) -> Tensor:
    """[n, n]: the entry of the flattened bias table for each pair: where the key lies from the query, dilated steps."""
    places = [torch.arange(axis.length, device=device) // axis.dilation for axis in axes]
    entry = torch.zeros((), dtype=torch.long, device=device)
    for place, axis in zip(torch.meshgrid(*places, indexing="ij"), axes):
        offset = place.flatten() - place.flatten()[:, None] + axis.window - 1
        # pairs out of reach are masked; they only need a valid entry
        entry = entry * (2 * axis.window - 1) + offset.clamp(0, 2 * axis.window - 2)
    return entry
