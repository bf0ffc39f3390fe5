"""One token of `linear_attention` in C++, for decoding: one pass over the states."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from attensor.ops._kernel import differentiable, register
from attensor.ops._native.tensors import TensorView, kernel, readable
from attensor.ops._precision import working_dtype
from attensor.ops.linear_attention.definition import define_step

__all__ = ["step"]

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
    if not kernel("linear_attention_step", _Step, dtype)(ctypes.byref(step)):
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
    """With G the gradient of S', all that reaches it counted: dq = S' do, dk = G v, dv = G^T k, dS = decay G."""
    q, k, v, state, log_decay = tensors
    _, new = _definition(tensors, options)
    of_out = q.new_zeros(*q.shape[:2], v.shape[2]) if grads[0] is None else grads[0]
    of_out = options[0] * of_out.to(new.dtype)
    of_new = q.to(new.dtype).unsqueeze(-1) * of_out.unsqueeze(-2)
    if grads[1] is not None:
        of_new = of_new + grads[1]
    groups = q.shape[1] // k.shape[1]
    keys, values = (x.to(new.dtype).repeat_interleave(groups, 1) for x in (k, v))
    of_k, of_v = (of_new * values.unsqueeze(-2)).sum(-1), (of_new * keys.unsqueeze(-1)).sum(-2)
    of_state, of_decay = of_new, None
    if log_decay is not None:
        of_state = of_new * log_decay.to(new.dtype).exp().unsqueeze(-1)
        of_decay = (of_state * state).sum(-1).sum_to_size(log_decay.shape).to(log_decay.dtype)
    found = (
        (new * of_out.unsqueeze(-2)).sum(-1).to(q.dtype),
        of_k.unflatten(1, (-1, groups)).sum(2).to(k.dtype),
        of_v.unflatten(1, (-1, groups)).sum(2).to(v.dtype),
        of_state.to(state.dtype),
        of_decay,
    )
    return tuple(g if needed else None for g, needed in zip(found, needs))


def _definition(tensors: Any, options: tuple[float]) -> tuple[Tensor, Tensor]:
    q, k, v, state, log_decay = tensors
    return define_step(q, k, v, log_decay, state, *options)


step = differentiable(_passed, _returned, _definition, batch_dims=(0, 0, 0, 0, 0), out_dims=(0, 0))
