"""The chunked recurrence of linear attention in C++, one head at a time in a core's cache.

Sizes: B batch, T tokens, H query heads, K key and V value channels, R rows of states, S kept states.
"""

from __future__ import annotations

import ctypes
import functools
import struct

import torch
from torch import Tensor

from attensor.ops._native.loading import argument_of
from attensor.ops._native.tensors import STORAGE, TensorView, kernel, readable
from attensor.ops._precision import WORKING
from attensor.ops.linear_attention.definition import define
from attensor.ops.linear_attention.problem import Inputs, bind, recur, sum_heads

__all__ = ["run"]

_TENSORS = "q k v out log_decay grad_out grad_q grad_k grad_v grad_decay"
_POINTERS = "initial_state final_state checkpoints grad_initial grad_final cu_seqlens"
_SIZES = "heads key_heads decay_heads key_dim value_dim chunk segment kind threads"

# room in a core's cache for the states within a segment, which are at most so many
_CACHE_BYTES, _MOST_CHUNKS = 2**17, 16


@argument_of("linear_attention")
class _Call(ctypes.Structure):
    """`Call` of recurrence.cpp."""

    _fields_ = (
        *((name, TensorView) for name in _TENSORS.split()),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "rows", "checkpoint_bytes")),
        *((name, ctypes.c_int32) for name in _SIZES.split()),
        ("scale", ctypes.c_double),
    )


# the same laid out by one call, which takes a tenth of the time that a structure of structures takes
_LAYOUT = struct.Struct("Qqqqi4x" * 10 + "6Q4q9id")
_NOTHING = (0, 0, 0, 0, 0)


def _view(x: Tensor | None) -> tuple[int, ...]:
    """`TensorView` of x [B, T, H, D] as `readable` gives it."""
    if x is None:
        return _NOTHING
    batch, token, head, _ = x.stride()
    return x.data_ptr(), batch, token, head, STORAGE[x.dtype]


def _run(
    inputs: Inputs, scale: float, chunk: int, tokens: dict[str, Tensor], states: dict[str, Tensor], *, backward: bool
) -> None:
    """Call C++.

    Args:
        inputs, scale, chunk: the problem.
        tokens: tensors [B, T, H, D] by the names of `Call`, besides the inputs.
        states: contiguous, by the names of `Call`, besides the initial state.
        backward: which pass.
    Raises:
        MemoryError: C++ got no memory.
    """
    q, k, v, log_decay, initial_state, cu_seqlens = inputs
    dtype = WORKING[q.dtype, v.dtype]
    gates = None if log_decay is None else _as_tokens(log_decay).expand(q.shape[0], -1, -1, -1)
    # kept by name: a pointer does not keep what it points to
    given = {"q": q, "k": k, "v": v, **tokens}
    if gates is not None:
        given["log_decay"] = gates
    for name, x in given.items():
        if x.stride(3) != 1 or x.dtype not in STORAGE or x.is_neg():
            given[name] = readable(x)
    if initial_state is not None:
        states["initial_state"] = initial_state.to(dtype).resolve_neg().contiguous()
    if cu_seqlens is not None:
        states["cu_seqlens"] = cu_seqlens.long().contiguous()
    views = [number for name in _TENSORS.split() for number in _view(given.get(name))]
    pointers = [states[name].data_ptr() if name in states else 0 for name in _POINTERS.split()]
    batch, length, heads, key_dim = q.shape
    call = _LAYOUT.pack(
        *views, *pointers, batch, length, _rows(inputs), states["checkpoints"].nbytes, heads, k.shape[2],
        heads if gates is None else gates.shape[2], key_dim, v.shape[3], chunk, _segment_size(inputs, chunk),
        0 if log_decay is None else log_decay.ndim - 1, torch.get_num_threads(), scale,
    )  # fmt: skip
    if not kernel("linear_attention", dtype)(call, int(backward)):
        raise MemoryError("linear_attention: the cpp back-end got no memory.")


def _rows(inputs: Inputs) -> int:
    return 1 if inputs.cu_seqlens is None else len(inputs.cu_seqlens) - 1


def _as_tokens(log_decay: Tensor) -> Tensor:
    """[B or 1, Hd], [B, T, Hd] or [B, T, Hd, K] as [B or 1, T or 1, Hd, K or 1]."""
    if log_decay.ndim == 2:
        return log_decay[:, None, :, None]
    return log_decay if log_decay.ndim == 4 else log_decay.unsqueeze(-1)


def _new_tokens(inputs: Inputs, like: Tensor) -> Tensor:
    """[B, T, H, D] for `like` [B, T, Hx, D]; in the working precision where heads are to be summed."""
    heads = inputs.q.shape[2]
    is_kept = like.shape[2] == heads and like.dtype in STORAGE
    return _new(inputs, (*inputs.q.shape[:2], heads, like.shape[3]), like.dtype if is_kept else None)


def _new(inputs: Inputs, sizes: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    # when packed, tokens may lie outside all sequences, and there may be more kept states than are needed
    make = inputs.q.new_empty if inputs.cu_seqlens is None else inputs.q.new_zeros
    return make(sizes, dtype=dtype or WORKING[inputs.q.dtype, inputs.v.dtype])


def _segment_size(inputs: Inputs, chunk_size: int) -> int:
    """Chunks between two states that are kept for the backward pass.

    At least so many that the kept states have no more numbers than q; more while those in between, which are computed
    anew, fit into a cache: memory that is written once and read once costs more than the products.
    """
    key_dim, value_dim = inputs.q.shape[3], inputs.v.shape[3]
    fitting = _CACHE_BYTES // max(1, key_dim * value_dim * WORKING[inputs.q.dtype, inputs.v.dtype].itemsize)
    return max(1, -(-value_dim // chunk_size), min(fitting, _MOST_CHUNKS))


def _kept_rows(inputs: Inputs, chunk_size: int) -> int:
    # enough for sequences of any lengths, because sum(ceil(length / span)) <= T // span + R
    tokens = inputs.q.shape[1]
    rows = tokens // (chunk_size * _segment_size(inputs, chunk_size)) + _rows(inputs)
    # one row would be another case to a tracer, which would then fix the number of tokens
    return rows if type(tokens) is int else rows + 1


def _forward(inputs: Inputs, scale: float, chunk_size: int, _: str, kept_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (*inputs.q.shape[::2], inputs.q.shape[3], inputs.v.shape[3])
    out_dtype = inputs.v.dtype if inputs.v.dtype in STORAGE else None
    out = _new(inputs, (*inputs.q.shape[:3], inputs.v.shape[3]), out_dtype)
    final, kept = _new(inputs, (_rows(inputs), *sizes)), _new(inputs, (kept_rows, *sizes))
    _run(inputs, scale, chunk_size, {"out": out}, {"final_state": final, "checkpoints": kept}, backward=False)
    return out.to(inputs.v.dtype), final, kept


def _backward(
    inputs: Inputs, kept: Tensor, grad_out: Tensor, grad_final: Tensor, scale: float, chunk_size: int, _: str,
    decay_gradient: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    q, k, v, log_decay, *_rest = inputs
    grads = {f"grad_{name}": _new_tokens(inputs, x) for name, x in zip("qkv", (q, k, v))}
    dtype = WORKING[q.dtype, v.dtype]
    states = {"checkpoints": kept, "grad_final": grad_final.to(dtype).resolve_neg().contiguous()}
    states["grad_initial"] = _new(inputs, tuple(grad_final.shape))
    of_decay = None
    if decay_gradient and log_decay is not None:
        # of a constant decay one number for each state
        if log_decay.ndim == 2:
            of_decay = q.new_zeros(_rows(inputs), *q.shape[::2], 1, dtype=dtype)
        else:
            of_decay = _new_tokens(inputs, _as_tokens(log_decay))
        grads["grad_decay"] = of_decay
    _run(inputs, scale, chunk_size, {"grad_out": grad_out, **grads}, states, backward=True)
    if of_decay is not None and log_decay is not None:
        if log_decay.ndim == 2:
            # rounded once, after all sums
            summed = of_decay.sum((0, 3)).sum_to_size(log_decay.shape[0], q.shape[2])
            of_decay = sum_heads(summed, log_decay, 1)
        else:
            of_decay = sum_heads(of_decay, _as_tokens(log_decay)).view(log_decay.shape)
    found = (sum_heads(grads[f"grad_{name}"], x) for name, x in zip("qkv", (q, k, v)))
    return (*found, of_decay, states["grad_initial"])


recurrence = bind("cpp_linear_attention", _forward, _backward, _kept_rows, define)
run = functools.partial(recur, recurrence, (32, 64))  # chunks as measured, forward and backward
