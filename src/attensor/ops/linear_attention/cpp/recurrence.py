"""The chunked recurrence of linear attention in C++: what `chunk` computes, one head at a time in a core's cache.

Sizes: B batch, T tokens, H query heads, K key and V value channels, R rows of states, S kept states.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from attensor.ops._native.tensors import STORAGE, TensorView, kernel, readable
from attensor.ops.linear_attention.chunk import Gradients
from attensor.ops.linear_attention.plan import Inputs

__all__ = ["backward", "forward", "new_states", "segment_size"]

_TENSORS = "q k v out log_decay grad_out grad_q grad_k grad_v grad_decay"
_POINTERS = "initial_state final_state checkpoints grad_initial grad_final cu_seqlens"
_SIZES = "heads key_heads decay_heads key_dim value_dim chunk segment kind threads"

# room in a core's cache for the states within a segment, which are at most so many
_CACHE_BYTES, _MOST_CHUNKS = 2**17, 16


class _Call(ctypes.Structure):
    """`Call` of recurrence.cpp."""

    _fields_ = (
        *((name, TensorView) for name in _TENSORS.split()),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "rows", "checkpoint_bytes")),
        *((name, ctypes.c_int32) for name in _SIZES.split()),
        ("scale", ctypes.c_double),
    )


class _Work:
    """One call: its tensors as C++ reads them, and the working precision.

    Args:
        inputs: the tensors of the call.
        scale: multiplies the output.
        chunk_size: C.
        segment: chunks between two kept states.
    """

    def __init__(self, inputs: Inputs, scale: float, chunk_size: int, segment: int) -> None:
        self.inputs = inputs
        self.dtype = _working_dtype(inputs)
        self.rows = 1 if inputs.cu_seqlens is None else inputs.cu_seqlens.shape[0] - 1
        self.batch, self.tokens, self.heads, _ = inputs.q.shape
        self.scale, self.chunk_size, self.segment = scale, chunk_size, segment

    def new_states(self, rows: int) -> Tensor:
        """[rows, B, H, K, V]."""
        sizes = (rows, self.batch, self.heads, self.inputs.q.shape[3], self.inputs.v.shape[3])
        return self._new(sizes, self.dtype)

    def new_tokens(self, like: Tensor) -> Tensor:
        """[B, T, H, D] for `like` [B, T, Hx, D]; in the working precision where heads are to be summed."""
        is_kept = like.shape[2] == self.heads and like.dtype in STORAGE
        sizes = (self.batch, self.tokens, self.heads, like.shape[3])
        return self._new(sizes, like.dtype if is_kept else self.dtype)

    def _new(self, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # when packed, tokens may lie outside all sequences, and there may be more kept states than are needed
        make = self.inputs.q.new_empty if self.inputs.cu_seqlens is None else self.inputs.q.new_zeros
        return make(sizes, dtype=dtype)

    def run(self, tokens: dict[str, Tensor | None], states: dict[str, Tensor], *, is_backward: bool) -> None:
        """Call C++.

        Args:
            tokens: tensors [B, T, H, D] by the names of `Call`, besides the inputs.
            states: contiguous, by the names of `Call`, besides the initial state.
            is_backward: which pass.
        Raises:
            MemoryError: C++ got no memory.
        """
        q, k, v, log_decay, initial_state, cu_seqlens = self.inputs
        gates = None if log_decay is None else _as_tokens(log_decay).expand(self.batch, -1, -1, -1)
        tokens = {"q": q, "k": k, "v": v, "log_decay": gates, **tokens}
        views = {name: readable(x) for name, x in tokens.items() if x is not None}
        pointers = dict(states)
        if initial_state is not None:
            pointers["initial_state"] = initial_state.to(self.dtype).contiguous()
        if cu_seqlens is not None:
            pointers["cu_seqlens"] = cu_seqlens.long().contiguous()
        call = _Call(
            **{name: TensorView.of(x) for name, x in views.items()},
            **{name: x.data_ptr() for name, x in pointers.items()},
            batch=self.batch,
            tokens=self.tokens,
            rows=self.rows,
            checkpoint_bytes=states["checkpoints"].nbytes,
            heads=self.heads,
            key_heads=k.shape[2],
            decay_heads=self.heads if gates is None else gates.shape[2],
            key_dim=q.shape[3],
            value_dim=v.shape[3],
            chunk=self.chunk_size,
            segment=max(1, self.segment),
            kind=0 if log_decay is None else log_decay.ndim - 1,
            threads=torch.get_num_threads(),
            scale=self.scale,
        )
        if not kernel("linear_attention", _Call, self.dtype)(ctypes.byref(call), int(is_backward)):
            raise MemoryError("linear_attention: the cpp back-end got no memory.")


def _working_dtype(inputs: Inputs) -> torch.dtype:
    return torch.promote_types(torch.promote_types(inputs.q.dtype, inputs.v.dtype), torch.float32)


def _as_tokens(log_decay: Tensor) -> Tensor:
    """[B or 1, Hd], [B, T, Hd] or [B, T, Hd, K] as [B or 1, T or 1, Hd, K or 1]."""
    if log_decay.ndim == 2:
        return log_decay[:, None, :, None]
    return log_decay if log_decay.ndim == 4 else log_decay[..., None]


def _sum_heads(x: Tensor, like: Tensor, dim: int) -> Tensor:
    """x with H heads in `dim`, summed over the query heads that share one of `like`'s, in its dtype."""
    heads = like.shape[dim]
    if x.shape[dim] != heads:
        x = torch.unflatten(x, dim, (heads, x.shape[dim] // heads)).sum(dim + 1)
    return x.to(like.dtype)


def segment_size(inputs: Inputs, chunk_size: int) -> int:
    """Chunks between two states that are kept for the backward pass.

    At least so many that the kept states have no more numbers than q; more while those in between, which are computed
    anew, fit into a cache: memory that is written once and read once costs more than the products.
    """
    key_dim, value_dim = inputs.q.shape[3], inputs.v.shape[3]
    fitting = _CACHE_BYTES // max(1, key_dim * value_dim * _working_dtype(inputs).itemsize)
    return max(1, -(-value_dim // chunk_size), min(fitting, _MOST_CHUNKS))


def new_states(inputs: Inputs, chunk_size: int, segment: int) -> tuple[Tensor, Tensor]:
    """Final states [R, B, H, K, V] and kept ones [S, B, H, K, V], none if segment is 0; to be filled."""
    work = _Work(inputs, 1.0, chunk_size, segment)
    # enough for sequences of any lengths, because sum(ceil(length / span)) <= T // span + R
    kept = work.tokens // (chunk_size * segment) + work.rows if segment else 0
    return work.new_states(work.rows), work.new_states(kept)


def forward(inputs: Inputs, scale: float, chunk_size: int, segment: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `chunk_forward`: out [B, T, H, V], final states [R, B, H, K, V], kept states as in `new_states`."""
    work = _Work(inputs, scale, chunk_size, segment)
    out = work.new_tokens(inputs.v)
    final, kept = new_states(inputs, chunk_size, segment)
    work.run({"out": out}, {"final_state": final, "checkpoints": kept}, is_backward=False)
    return out.to(inputs.v.dtype), final, kept


def backward(
    inputs: Inputs,
    checkpoints: Tensor,
    grad_out: Tensor,
    grad_final: Tensor,
    scale: float,
    chunk_size: int,
    segment: int,
    *,
    decay_gradient: bool,
) -> Gradients:
    """As `chunk_backward`; segment is that of the forward pass."""
    work = _Work(inputs, scale, chunk_size, segment)
    q, k, v, log_decay, *_ = inputs
    grads = [work.new_tokens(x) for x in (q, k, v)]
    grad_initial, grad_decay = work.new_states(work.rows), None
    if decay_gradient and log_decay is not None:
        # of a constant decay one number for each state
        sizes = (work.rows, work.batch, work.heads)
        grad_decay = (
            q.new_zeros(sizes, dtype=work.dtype) if log_decay.ndim == 2 else work.new_tokens(_as_tokens(log_decay))
        )
    work.run(
        {"grad_out": grad_out, "grad_decay": grad_decay, **dict(zip(("grad_q", "grad_k", "grad_v"), grads))},
        {
            "checkpoints": checkpoints,
            "grad_final": grad_final.to(work.dtype).contiguous(),
            "grad_initial": grad_initial,
        },
        is_backward=True,
    )
    if grad_decay is not None and log_decay is not None:
        if log_decay.ndim == 2:
            # rounded once, after all sums
            summed = grad_decay.sum(0).sum_to_size(log_decay.shape[0], work.heads)
            grad_decay = _sum_heads(summed, log_decay, 1)
        else:
            grad_decay = _sum_heads(grad_decay, _as_tokens(log_decay), 2).view(log_decay.shape)
    grad_q, grad_k, grad_v = (_sum_heads(g, x, 2) for g, x in zip(grads, (q, k, v)))
    return Gradients(grad_q, grad_k, grad_v, grad_decay, grad_initial)
