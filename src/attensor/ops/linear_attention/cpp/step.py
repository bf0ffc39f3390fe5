"""One token of `linear_attention` in C++, for decoding: one pass over the states."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from attensor.ops._native.tensors import TensorView, kernel, readable

__all__ = ["advance"]

# of states: with fewer, starting another thread was measured to take longer than what it does
_BYTES_PER_THREAD = 2**22


class _Step(ctypes.Structure):
    """`Step` of step.cpp."""

    _fields_ = (
        *((name, TensorView) for name in ("q", "k", "v", "log_decay", "out")),
        *((name, ctypes.c_void_p) for name in ("old_state", "state")),
        ("batch", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("heads", "key_heads", "key_dim", "value_dim", "decays", "threads")),
        ("scale", ctypes.c_double),
    )


def advance(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, H, V] and new state [B, H, K, V].

    Args:
        q, k, v, state: as in `attensor.ops.linear_attention_step`.
        log_decay: [B, H, K or 1] or None.
        scale: multiplies the output.
    Raises:
        MemoryError: C++ got no memory.
    """
    (batch, heads, key_dim), value_dim = q.shape, v.shape[2]
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    old = state.to(dtype).contiguous()
    new = torch.empty_like(old)
    out = v.new_empty(batch, heads, value_dim, dtype=dtype)
    given = {"q": q, "k": k, "v": v, "log_decay": log_decay, "out": out}
    # kept by name: a view does not keep what it shows
    tokens = {name: readable(x) for name, x in given.items() if x is not None}
    step = _Step(
        **{name: TensorView.of(x.unsqueeze(1)) for name, x in tokens.items()},
        old_state=old.data_ptr(),
        state=new.data_ptr(),
        batch=batch,
        heads=heads,
        key_heads=k.shape[1],
        key_dim=key_dim,
        value_dim=value_dim,
        decays=0 if log_decay is None else log_decay.shape[2],
        threads=min(torch.get_num_threads(), 1 + new.nbytes // _BYTES_PER_THREAD),
        scale=scale,
    )
    if not kernel("linear_attention_step", _Step, dtype)(ctypes.byref(step)):
        raise MemoryError("linear_attention_step: the cpp back-end got no memory.")
    return out.to(v.dtype), new
