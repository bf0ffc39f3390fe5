"""The implementations between which `linear_attention` chooses, all with one signature.

    (q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size, kind) -> out [B, T, H, V], states

with the public function's arguments after its checks, and kind `"la2"`, `"la1"` or `"bidirectional"`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attensor.ops.linear_attention.bidirectional import bidirectional, bidirectional_reference
from attensor.ops.linear_attention.function import ChunkedRecurrence
from attensor.ops.linear_attention.left_product import left_product
from attensor.ops.linear_attention.reference import reference
from attensor.ops.linear_attention.segments import Segments

__all__ = ["Algorithm", "Kind", "reference_backend", "torch_backend", "triton_backend"]

Algorithm = Literal["la1", "la2"]
Kind = Literal["la1", "la2", "bidirectional"]

# measured on a CPU, forward and backward, for K = V = 32 to 128
_CHUNK_SIZE = 64
_TILE = 128  # rows of a left product


def torch_backend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int | None,
    kind: Kind,
) -> tuple[Tensor, Tensor]:
    """Matrix products over chunks, tiles or whole sequences."""
    if kind == "la2":
        return _chunked(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size or _CHUNK_SIZE)
    queries, keys, values, segments = _prepare(q, k, v, cu_seqlens)
    if kind == "la1":
        tile = chunk_size or _TILE
        out, state = left_product(queries, keys, values, log_decay, initial_state, segments, tile)
    else:
        out, state = bidirectional(queries, keys, values, initial_state, segments)
    return (scale * out).to(v.dtype), state


def reference_backend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int | None,
    kind: Kind,
) -> tuple[Tensor, Tensor]:
    """The definition."""
    if kind != "bidirectional":
        return reference(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size)
    queries, keys, values, segments = _prepare(q, k, v, cu_seqlens)
    out, state = bidirectional_reference(queries, keys, values, initial_state, segments)
    return (scale * out).to(v.dtype), state


def triton_backend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int | None,
    kind: Kind,
) -> tuple[Tensor, Tensor]:
    """Triton kernels for the recurrence; the other kinds are large matrix products, which torch does as well."""
    if kind != "la2":
        return torch_backend(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size, kind)
    # imported here: triton is an optional library
    from attensor.ops.triton.linear_attention import chunked

    return chunked(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size)


def _prepare(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Segments]:
    """q, k, v in the working dtype with equal heads, and the sequences."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    groups = q.shape[2] // k.shape[2]
    keys, values = (x.to(dtype).repeat_interleave(groups, 2) if groups > 1 else x.to(dtype) for x in (k, v))
    return q.to(dtype), keys, values, Segments(q, cu_seqlens)


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """The chunked recurrence; its states are [rows, B, H, K, V], rows being the packed sequences or 1."""
    size = 1
    while size < limit and size < q.shape[1]:
        size *= 2
    batch_dim = 0 if cu_seqlens is None else 1
    if initial_state is not None:
        initial_state = initial_state.unsqueeze(batch_dim)
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = log_decay.unsqueeze(0)
    arguments = (q, k, v, log_decay, initial_state, cu_seqlens, scale, size)
    out, state, _ = ChunkedRecurrence.apply(*arguments)  # type: ignore[no-untyped-call]
    return out, state.squeeze(batch_dim)
