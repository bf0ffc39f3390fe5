"""The kernels as differentiable operators of torch's library; those for CPU serve Triton's interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops._kernel import register
from attensor.ops.linear_attention.definition import define
from attensor.ops.linear_attention.problem import Inputs, LinearAttentionProblem, StepProblem, bind, recur, sum_heads
from attensor.ops.linear_attention.triton import launch, passes
from attensor.ops.linear_attention.triton.plan import Plan

__all__ = ["chunked", "step"]

_DEVICES = ("CPU", "CUDA")


def chunked(problem: LinearAttentionProblem, schedule: str | None = None) -> tuple[Tensor, Tensor]:
    """The recurrence, differentiable.

    Args:
        problem: not of float64; at least 16 tokens are taken as a chunk.
        schedule: `"parallel"` (states at the borders of chunks go through memory), `"on_chip"` (they do not), or
            `"recurrent"` (token by token, forward only; the gradient is taken by chunks); None: by the sizes.
    Returns:
        out [B, T, H, V] in v's dtype, states [B, H, K, V] (packed: [N, H, K, V]) in float32.
    Raises:
        ValueError: unknown schedule.
    """
    if schedule is not None and schedule not in passes.SCHEDULES:
        names = ", ".join(map(repr, passes.SCHEDULES))
        raise ValueError(f"linear_attention: unknown schedule {schedule!r}; choose one of {names} or None.")
    return recur(_recurrence, (64, 64), problem, schedule or "")


def step(x: StepProblem) -> tuple[Tensor, Tensor]:
    """One token of the recurrence in one kernel: out [B, H, V] and the new state, or the pool changed in place."""
    q, k, v = (t.unsqueeze(1) for t in (x.q, x.k, x.v))
    decay = x.log_decay if x.log_decay is None or x.log_decay.ndim == 1 else x.log_decay.unsqueeze(1)
    if x.state_slots is None:
        problem = LinearAttentionProblem(q, k, v, decay, x.scale, True, x.state, None, 1)
        out, new = chunked(problem, "recurrent")
        return out.squeeze(1), new
    if decay is not None and decay.ndim == 1:
        decay = decay.unsqueeze(0)
    return _decode(q, k, v, decay, x.state, x.state_slots, x.scale).squeeze(1), x.state


def _forward(inputs: Inputs, scale: float, chunk: int, schedule: str, _: int) -> tuple[Tensor, Tensor, Tensor]:
    plan, nothing = Plan(inputs, chunk), inputs.new_states(0)
    if plan.is_empty:
        final = inputs.new_states(inputs.rows).zero_()
        return inputs.new_output().zero_(), final if plan.initial is None else final.copy_(plan.initial), nothing
    out, final = passes.forward(plan, scale, plan.dtype, schedule or None)
    return out.to(inputs.v.dtype), final, nothing


def _backward(
    inputs: Inputs, _: Tensor, grad_out: Tensor, grad_final: Tensor, scale: float, chunk: int, schedule: str,
    decay_gradient: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    plan, (q, k, v, log_decay, *_rest) = Plan(inputs, chunk), inputs
    if plan.is_empty:
        grads = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        of_decay = torch.zeros_like(log_decay) if decay_gradient and log_decay is not None else None
        return *grads, of_decay, grad_final.to(torch.float32, copy=True).contiguous()
    # an expanded gradient (of a sum) has strides that no kernel reads
    incoming = (grad_out.contiguous(), grad_final.contiguous())
    found = passes.backward(plan, *incoming, scale, schedule or None, decay_gradient=decay_gradient)
    of_decay = found.log_decay
    if of_decay is not None and log_decay is not None:
        if log_decay.ndim == 2:
            of_decay = sum_heads(of_decay.sum(1).sum_to_size(log_decay.shape[0], q.shape[2]), log_decay, 1)
        else:
            of_decay = sum_heads(of_decay, log_decay)
    return found.q.to(q.dtype), sum_heads(found.k, k), sum_heads(found.v, v), of_decay, found.initial_state


_recurrence = bind("triton_linear_attention", _forward, _backward, lambda inputs, size: 0, define, _DEVICES)


def _run_decode(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, pool: Tensor, slots: Tensor, scale: float
) -> Tensor:
    """One token, [B, 1, heads, D]; pool [S, H, K, V] is changed in its slots; -1 gives zeros."""
    inputs = Inputs(q, k, v, log_decay, None, None)
    if q.numel() == 0 or v.numel() == 0:
        return inputs.new_output().zero_()
    plan = Plan(inputs, 1)
    own = pool if pool.is_contiguous() else pool.contiguous()
    out = launch.decode(plan, own, slots.contiguous(), scale, plan.dtype)
    if own is not pool:
        pool.copy_(own)
    return out.to(v.dtype)


_decode = register(
    "triton_linear_attention_step(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor(a!) pool, Tensor slots, "
    "float scale) -> Tensor",
    _run_decode,
    lambda q, k, v, *_: q.new_empty(*q.shape[:3], v.shape[-1], dtype=v.dtype),
    flops=lambda q, k, v, *_: 4 * q[0] * q[2] * q[3] * v[3],
    devices=_DEVICES,
)
