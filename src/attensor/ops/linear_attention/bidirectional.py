"""Linear attention in which every query sees every key of its sequence: two matrix products, O(T K V)."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops.linear_attention.segments import Segments

__all__ = ["bidirectional", "bidirectional_reference"]


def bidirectional(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None, segments: Segments
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] = q S and S = initial_state + sum_j k_j v_j^T [B or N, H, K, V], unscaled, H equal heads."""
    state = segments.state(k, v)
    if initial_state is not None:
        state = state + initial_state.to(state.dtype)
    return segments.read(q, state), state


def bidirectional_reference(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None, segments: Segments
) -> tuple[Tensor, Tensor]:
    """The same by the T x T matrix of weights, O(T^2 (K + V))."""
    weights = torch.einsum("bihk,bjhk->bhij", q, k)
    if segments.cu_seqlens is None:
        state = torch.einsum("bjhk,bjhv->bhkv", k, v)
    else:
        weights = weights * (segments.index[:, None] == segments.index)
        rows = segments.cu_seqlens.shape[0] - 1
        member = (segments.index[:, None] == torch.arange(rows, device=q.device)).to(k.dtype)
        state = torch.einsum("jn,jhk,jhv->nhkv", member, k[0], v[0])
        weights = weights * member.sum(1)[:, None]
    out = torch.einsum("bhij,bjhv->bihv", weights, v)
    if initial_state is not None:
        initial = initial_state.to(state.dtype)
        state = state + initial
        out = out + (
            torch.einsum("bihk,bhkv->bihv", q, initial)
            if segments.cu_seqlens is None
            else torch.einsum("in,bihk,nhkv->bihv", member, q, initial)
        )
    return out, state
