"""The implementations between which `linear_attention` chooses: each takes a `Call` to its output and final states."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attensor.ops.linear_attention.bidirectional import bidirectional, bidirectional_reference
from attensor.ops.linear_attention.function import ChunkedRecurrence, Engine
from attensor.ops.linear_attention.left_product import left_product
from attensor.ops.linear_attention.reference import reference
from attensor.ops.linear_attention.segments import Segments

__all__ = ["Algorithm", "Call", "Kind", "cpp_backend", "reference_backend", "torch_backend", "triton_backend"]

Algorithm = Literal["la1", "la2"]
Kind = Literal["la1", "la2", "bidirectional"]

# measured on a CPU, forward and backward, for K = V = 32 to 128; C++ takes half of it up to K = V = 64
_CHUNK_SIZE = 64
_TILE = 128  # rows of a left product


class Call(NamedTuple):
    """The public function's arguments after its checks, and which of three sums is meant."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    scale: float
    chunk_size: int | None
    kind: Kind


def torch_backend(call: Call) -> tuple[Tensor, Tensor]:
    """Matrix products over chunks, tiles or whole sequences."""
    if call.kind == "la2":
        return _chunked(call, "torch", call.chunk_size or _CHUNK_SIZE)
    q, k, v, segments = _prepare(call)
    if call.kind == "la1":
        out, state = left_product(q, k, v, call.log_decay, call.initial_state, segments, call.chunk_size or _TILE)
    else:
        out, state = bidirectional(q, k, v, call.initial_state, segments)
    return (call.scale * out).to(call.v.dtype), state


def cpp_backend(call: Call) -> tuple[Tensor, Tensor]:
    """C++ for the recurrence; the other kinds are large matrix products, which torch does as well."""
    if call.kind != "la2":
        return torch_backend(call)
    is_wide = max(call.q.shape[3], call.v.shape[3]) > _CHUNK_SIZE
    return _chunked(call, "cpp", call.chunk_size or (_CHUNK_SIZE if is_wide else _CHUNK_SIZE // 2))


def reference_backend(call: Call) -> tuple[Tensor, Tensor]:
    """The definition."""
    if call.kind != "bidirectional":
        return reference(*call[:-2])
    q, k, v, segments = _prepare(call)
    out, state = bidirectional_reference(q, k, v, call.initial_state, segments)
    return (call.scale * out).to(call.v.dtype), state


def triton_backend(call: Call) -> tuple[Tensor, Tensor]:
    """Triton kernels for the recurrence; the other kinds are large matrix products, which torch does as well."""
    if call.kind != "la2":
        return torch_backend(call)
    # imported here: triton is an optional library
    from attensor.ops.triton.linear_attention import chunked

    return chunked(*call[:-1])


def _prepare(call: Call) -> tuple[Tensor, Tensor, Tensor, Segments]:
    """q, k, v in the working dtype with equal heads, and the sequences."""
    q, k, v = call[:3]
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    groups = q.shape[2] // k.shape[2]
    keys, values = (x.to(dtype).repeat_interleave(groups, 2) if groups > 1 else x.to(dtype) for x in (k, v))
    return q.to(dtype), keys, values, Segments(q, call.cu_seqlens)


def _chunked(call: Call, engine: Engine, limit: int) -> tuple[Tensor, Tensor]:
    """The chunked recurrence; its states are [rows, B, H, K, V], rows being the packed sequences or 1."""
    q, k, v, log_decay, initial_state, cu_seqlens, scale, *_ = call
    size = 1
    while size < limit and size < q.shape[1]:
        size *= 2
    batch_dim = 0 if cu_seqlens is None else 1
    if initial_state is not None:
        initial_state = initial_state.unsqueeze(batch_dim)
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = log_decay.unsqueeze(0)
    arguments = (q, k, v, log_decay, initial_state, cu_seqlens, scale, size, engine, torch.is_grad_enabled())
    out, state, _ = ChunkedRecurrence.apply(*arguments)  # type: ignore[no-untyped-call]
    return out, state.squeeze(batch_dim)
