"""The definition of neighbourhood attention: dense attention under a boolean mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.ops import _packing
from attensor.ops._checks import scale_of
from attensor.ops._kernel import Tensors
from attensor.ops._precision import working_dtype
from attensor.ops.neighborhood_attention.neighborhood import Axis, axes_of, key_range
from attensor.ops.softmax_attention.reference import Attended, dense

__all__ = ["Problem", "define", "dense_neighborhood"]


@dataclass(frozen=True)
class Problem:
    """Arguments of `neighborhood_attention`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    window_size: int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    is_causal: bool | tuple[bool, ...]
    border: str
    scale: float | None
    relative_bias: Tensor | None
    additional_keys: Tensor | None
    additional_values: Tensor | None
    return_lse: bool
    cu_seqlens: Tensor | None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Of the grid, with every parameter checked."""
        return axes_of(self.q.shape[1:-2], self.window_size, self.dilation, self.stride, self.is_causal, self.border)

    @property
    def tensors(self) -> Tensors:
        """q, k, v, bias [1, H, ..], additional keys and values, and the first token of each token's sequence."""
        first_key = None if self.cu_seqlens is None else _packing.first_tokens(self.cu_seqlens, self.q.shape[1])
        bias = None if self.relative_bias is None else self.relative_bias[None]
        return self.q, self.k, self.v, bias, self.additional_keys, self.additional_values, first_key


def define(x: Problem) -> Attended:
    """The result of `neighborhood_attention`: a softmax over the keys that every axis allows, O(n^2)."""
    out, lse = dense_neighborhood(x.tensors, x.axes, scale_of(x.q, x.scale))
    return (out, lse) if x.return_lse else out


def dense_neighborhood(tensors: Tensors, axes: tuple[Axis, ...], scale: float) -> tuple[Tensor, Tensor]:
    """out and lse with all scores in memory.

    Args:
        tensors: q, k, v, bias [1 or B, H, ..], additional keys and values, and for each token the first one of its
            packed sequence; all but the first three may be None.
        axes: of the grid.
        scale: multiplies q k.
    """
    q, k, v, bias, extra_k, extra_v, first_key = tensors
    space = q.shape[1:-2]
    allowed = torch.ones(1, 1, dtype=torch.bool, device=q.device)
    for axis in axes:
        along = _allowed_along(axis, q.device)
        allowed = (allowed[:, None, :, None] & along[:, None]).flatten(2, 3).flatten(0, 1)  # Kronecker product
    if first_key is not None:
        allowed = allowed & (first_key[:, None] == first_key)
    mask = torch.zeros(1, 1, 1, 1, dtype=working_dtype(q), device=q.device)
    if bias is not None:
        mask = bias.flatten(2)[:, :, _offsets(axes, q.device)].to(mask.dtype)  # [1 or B, H, n, n]
    mask = mask.masked_fill(~allowed, float("-inf"))

    q, k, v = (t.flatten(1, -3) for t in (q, k, v))
    if extra_k is not None and extra_v is not None:
        k, v = torch.cat([k, extra_k], 1), torch.cat([v, extra_v], 1)
        mask = torch.nn.functional.pad(mask, (0, extra_k.shape[1]))
    out, lse = dense(q, k, v, mask, scale)
    return torch.unflatten(out, 1, space), torch.unflatten(lse, 1, space)


def _allowed_along(axis: Axis, device: torch.device) -> Tensor:
    """[n, n] bool for one axis: same dilation group, and inside the query's range there."""
    x = torch.arange(axis.length, device=device)
    group, place = x % axis.dilation, x // axis.dilation
    allowed = group[:, None] == group
    for remainder in range(min(axis.dilation, axis.length)):
        members = (axis.length - remainder + axis.dilation - 1) // axis.dilation  # for free lengths too
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
