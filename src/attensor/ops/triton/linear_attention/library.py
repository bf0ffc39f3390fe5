"""The kernels as operators of torch's library: what the dispatcher, compilers and fake tensors see.

Implementations for CPU serve Triton's interpreter.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attensor.ops.triton.linear_attention import launch, passes
from attensor.ops.triton.linear_attention.plan import Inputs, Plan

__all__ = ["backward", "decode", "forward"]

_LIBRARY = torch.library.Library("attensor", "FRAGMENT")
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? initial_state, Tensor? cu_seqlens"
_OPTIONS = "float scale, int chunk_size, str? schedule"


def _define(name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register `attensor::name` and return it."""
    _LIBRARY.define(name + signature)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"attensor::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.attensor, name)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int,
    schedule: str | None,
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] in v's dtype, final states [R, B, H, K, V] in float32."""
    plan = Plan(Inputs(q, k, v, log_decay, initial_state, cu_seqlens), chunk_size)
    if plan.is_empty:
        out, final = _forward_fake(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size, schedule)
        return out.zero_(), final.zero_() if initial_state is None else final.copy_(initial_state)
    out, final = passes.forward(plan, scale, plan.dtype, schedule)
    return out.to(v.dtype), final


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int,
    schedule: str | None,
) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, key_dim = q.shape
    rows = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    out = v.new_empty(batch, tokens, heads, v.shape[-1])
    return out, q.new_empty(rows, batch, heads, key_dim, v.shape[-1], dtype=torch.float32)


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    grad_out: Tensor,
    grad_final: Tensor,
    scale: float,
    chunk_size: int,
    schedule: str | None,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the initial states [R, B, H, K, V] and log_decay ([0] unless `decay_gradient`)."""
    plan = Plan(Inputs(q, k, v, log_decay, initial_state, cu_seqlens), chunk_size)
    wanted = decay_gradient and log_decay is not None
    if plan.is_empty:
        grads = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        gates = _gate_like(log_decay if wanted else None, q).zero_()
        return grads[0], grads[1], grads[2], grad_final.to(torch.float32, copy=True).contiguous(), gates
    found = passes.backward(plan, grad_out, grad_final, scale, schedule, decay_gradient=wanted)
    gates = _gate_like(None, q)
    if log_decay is not None and found.log_decay is not None:
        gates = _gate_gradient(found.log_decay, log_decay)
    grad_k, grad_v = _sum_heads(found.k, k.shape[2]).to(k.dtype), _sum_heads(found.v, v.shape[2]).to(v.dtype)
    return found.q.to(q.dtype), grad_k, grad_v, found.initial_state, gates


def _backward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    grad_out: Tensor,
    grad_final: Tensor,
    scale: float,
    chunk_size: int,
    schedule: str | None,
    decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = [x.new_empty(x.shape) for x in (q, k, v)]
    gates = _gate_like(log_decay if decay_gradient else None, q)
    return grads[0], grads[1], grads[2], grad_final.new_empty(grad_final.shape, dtype=torch.float32), gates


def _gate_like(log_decay: Tensor | None, q: Tensor) -> Tensor:
    return q.new_empty(0) if log_decay is None else log_decay.new_empty(log_decay.shape)


def _gate_gradient(grad: Tensor, log_decay: Tensor) -> Tensor:
    """grad [B, T, H] or [B, T, H, K] as the gradient of a log_decay of any kind."""
    if log_decay.ndim == 2:
        rows = grad.sum(1) if log_decay.shape[0] > 1 else grad.sum((0, 1))[None]
        grad = _sum_heads(rows[:, None], log_decay.shape[1])[:, 0]
    else:
        grad = _sum_heads(grad, log_decay.shape[2])
    return grad.to(log_decay.dtype)


def _sum_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, H, ...] -> [B, T, heads, ...], summed over the query heads of each group."""
    return x if x.shape[2] == heads else x.unflatten(2, (heads, -1)).sum(3)


def _decode(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, pool: Tensor, slots: Tensor, scale: float
) -> Tensor:
    """One token, [B, 1, heads, D]; pool [S, H, K, V] is changed in its slots; -1 gives zeros."""
    if q.numel() == 0 or v.numel() == 0:
        return _decode_fake(q, k, v, log_decay, pool, slots, scale).zero_()
    plan = Plan(Inputs(q, k, v, log_decay, None, None), 1)
    own = pool if pool.is_contiguous() else pool.contiguous()
    out = launch.decode(plan, own, slots.contiguous(), scale, plan.dtype)
    if own is not pool:
        pool.copy_(own)
    return out.to(v.dtype)


def _decode_fake(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, pool: Tensor, slots: Tensor, scale: float
) -> Tensor:
    return v.new_empty(q.shape[0], 1, q.shape[2], v.shape[-1])


forward = _define("linear_attention_forward", f"({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)", _forward, _forward_fake)
backward = _define(
    "linear_attention_backward",
    f"({_INPUTS}, Tensor grad_out, Tensor grad_final, {_OPTIONS}, bool decay_gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
decode = _define(
    "linear_attention_decode",
    "(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor(a!) pool, Tensor slots, float scale) -> Tensor",
    _decode,
    _decode_fake,
)
