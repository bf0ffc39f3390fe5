"""One token of `linear_attention` in C++, for decoding: one pass over the states."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from attensor.ops._kernel import differentiable, register
from attensor.ops._native.loading import argument_of
from attensor.ops._native.tensors import TensorView, kernel, readable
from attensor.ops._precision import working_dtype
from attensor.ops.linear_attention.definition import define_step

__all__ = ["step"]

# of states: with fewer, starting another thread was measured to take longer than what it does
_BYTES_PER_THREAD = 2**22


@argument_of("linear_attention_step")
class _Step(ctypes.Structure):
    """`Step` of step.cpp."""

    _fields_ = (
        *((name, TensorView) for name in ("q", "k", "v", "log_decay", "out")),
        *((name, ctypes.c_void_p) for name in ("old_state", "state")),
        ("batch", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("heads", "key_heads", "key_dim", "value_dim", "decays", "threads")),
        ("scale", ctypes.c_double),
    )


def _forward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    (batch, heads, key_dim), value_dim = q.shape, v.shape[2]
    dtype = working_dtype(q, v)
    old = state.to(dtype).resolve_neg().contiguous()
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
    if not kernel("linear_attention_step", dtype)(ctypes.byref(step)):
        raise MemoryError("linear_attention_step: the cpp back-end got no memory.")
    return out.to(v.dtype), new


def _fake(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(*q.shape[:2], v.shape[2]), state.new_empty(state.shape, dtype=working_dtype(q, v))


_kernel = register(
    "cpp_linear_attention_step(Tensor q, Tensor k, Tensor v, Tensor state, Tensor? log_decay, float scale) "
    "-> (Tensor, Tensor)",
    _forward,
    _fake,
    flops=lambda q, k, v, *_: 4 * q[0] * q[1] * q[2] * v[2],
)


def _passed(tensors: Any, options: tuple[float], _: bool) -> tuple[Tensor, ...]:
    return tuple(_kernel(*tensors, *options))


def _returned(tensors: Any, kept: Any, grads: Any, options: tuple[float], needs: Any) -> tuple[Tensor | None, ...]:
    """Gradients of the definition."""
    given = [x for x in tensors if x is not None]  # all but the decay, perhaps
    outs, pull, *_ = torch.func.vjp(lambda *x: _definition((*x, None)[:5], options), *given)
    found = pull(tuple(torch.zeros_like(x) if g is None else g.to(x.dtype) for x, g in zip(outs, grads)))
    return tuple(g if needed else None for g, needed in zip((*found, None), needs))


def _definition(tensors: Any, options: tuple[float]) -> tuple[Tensor, Tensor]:
    q, k, v, state, log_decay = tensors
    return define_step(q, k, v, log_decay, state, *options)


step = differentiable(_passed, _returned, _definition, batch_dims=(0, 0, 0, 0, 0), out_dims=(0, 0))
