r"""Which kernels make up the forward and the backward pass.

Schedules: `"parallel"` writes the states at the borders of chunks and treats all chunks at once; `"on_chip"` keeps
the state in registers and goes through the chunks one after the other; `"recurrent"` goes token by token (forward).

Gradients use that linear attention is its own gradient, with tensors exchanged and time reversed (see `read`): those of
q, k and v come from the kernels of the output.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.linear_attention.triton import launch
from attensor.ops.linear_attention.triton.launch import Reading
from attensor.ops.linear_attention.triton.plan import Plan

__all__ = ["SCHEDULES", "Gradients", "backward", "forward"]

SCHEDULES = ("parallel", "on_chip", "recurrent")

_FEW_TOKENS = 16  # from here on matrix units do better than token by token
_PROGRAMS_A_MULTIPROCESSOR = 2


class Gradients(NamedTuple):
    """Gradients of the inputs for each query head, in float32 wherever more is summed or computed from them."""

    q: Tensor  # [B, T, H, K]
    k: Tensor  # [B, T, H, K]
    v: Tensor  # [B, T, H, V]
    initial_state: Tensor  # [R, B, H, K, V]
    log_decay: Tensor | None  # [B, T, H] or [B, T, H, K]


def forward(plan: Plan, scale: float, dtype: torch.dtype, schedule: str | None) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] in `dtype` and final states [R, B, H, K, V] in float32."""
    schedule = schedule or _fitting_schedule(plan)
    if schedule == "recurrent":
        return launch.recurrent(plan, scale, dtype)
    reading = Reading(plan.q, plan.k, plan.v)
    scores = launch.scores(plan, plan.q, plan.k, decayed=True) if plan.decay == 3 else None
    if schedule == "on_chip":
        return launch.on_chip(plan, reading, plan.initial, scale, dtype, scores)
    states, final = launch.scan(plan, plan.k, plan.v, plan.initial, scale, plan.state_dtype)
    return launch.read(plan, reading, states, scale, dtype, scores), final


def backward(
    plan: Plan, grad_out: Tensor, grad_final: Tensor, scale: float, schedule: str | None, *, decay_gradient: bool
) -> Gradients:
    """Gradients, from those of the output [B, T, H, V] and of the final states [R, B, H, K, V]."""
    schedule = schedule or _fitting_schedule(plan)
    grad_out, grad_final = plan.converted(grad_out), grad_final.float().contiguous()
    if plan.decay < 3 and not decay_gradient and schedule != "parallel":
        return _backward_on_chip(plan, grad_out, grad_final, scale)
    dtypes = _gradient_dtypes(plan, decay_gradient=decay_gradient)
    exact = torch.float32 if decay_gradient else plan.state_dtype
    states, _ = launch.scan(plan, plan.k, plan.v, plan.initial, scale, exact)
    grad_states, grad_initial = launch.scan(plan, plan.q, grad_out, grad_final, scale, exact, reverse=True)
    grads = _read(plan, grad_out, states, grad_states, scale, dtypes)
    gates = launch.gate_gradient(plan, *grads[:2], states, grad_states) if decay_gradient else None
    return Gradients(*grads, grad_initial, gates)


def _gradient_dtypes(plan: Plan, *, decay_gradient: bool) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """Of the gradients of q, k, v."""
    shared = torch.float32 if plan.heads != plan.k.shape[2] else plan.dtype  # heads of a group are summed
    return (torch.float32, torch.float32, shared) if decay_gradient else (plan.dtype, shared, shared)


def _reads(plan: Plan, grad_out: Tensor) -> tuple[Reading, Reading, Reading]:
    """What the gradients of q, k and v read."""
    q, k, v = plan.q, plan.k, plan.v
    return Reading(grad_out, v, k, True), Reading(v, grad_out, q, True, True), Reading(k, q, grad_out, False, True)


def _read(
    plan: Plan, grad_out: Tensor, states: Tensor, grad_states: Tensor, scale: float, dtypes: tuple[torch.dtype, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v. With a decay per key channel, what tokens of a chunk give each other comes by scores."""
    for_q, for_k, for_v = _reads(plan, grad_out)
    is_channel = plan.decay == 3
    exact = [torch.float32 if is_channel else dtype for dtype in dtypes]
    grad_q = launch.read(plan, for_q, states, scale, exact[0])
    grad_k = launch.read(plan, for_k, grad_states, scale, exact[1])
    scores = launch.scores(plan, plan.q, plan.k, decayed=True) if is_channel else None
    grad_v = launch.read(plan, for_v, grad_states, scale, dtypes[2], scores)
    if is_channel:
        grad_scores = launch.scores(plan, grad_out, plan.v, decayed=False)
        grad_q = launch.score_gradient(plan, plan.k, grad_scores, grad_q, scale, dtypes[0], reverse=False)
        grad_k = launch.score_gradient(plan, plan.q, grad_scores, grad_k, scale, dtypes[1], reverse=True)
    return grad_q, grad_k, grad_v


def _backward_on_chip(plan: Plan, grad_out: Tensor, grad_final: Tensor, scale: float) -> Gradients:
    begins, dtypes = (plan.initial, grad_final, grad_final), _gradient_dtypes(plan, decay_gradient=False)
    (grad_q, _), (grad_k, _), (grad_v, grad_initial) = (
        launch.on_chip(plan, reading, begin, scale, dtype)
        for reading, begin, dtype in zip(_reads(plan, grad_out), begins, dtypes)
    )
    return Gradients(grad_q, grad_k, grad_v, grad_initial, None)


def _fitting_schedule(plan: Plan) -> str:
    """The schedule that should be fastest: on chip when that alone fills the device, or when there is little to do."""
    if plan.tokens <= _FEW_TOKENS:
        return "recurrent"
    if plan.chunks <= 2:
        return "on_chip"
    if plan.q.device.type != "cuda":
        return "parallel"
    programs = plan.rows * plan.batch * plan.heads * -(-plan.value_dim // 32)
    multiprocessors = torch.cuda.get_device_properties(plan.q.device).multi_processor_count
    return "on_chip" if programs >= _PROGRAMS_A_MULTIPROCESSOR * multiprocessors else "parallel"
