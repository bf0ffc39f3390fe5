r"""The chunked recurrence, forward and backward: one algorithm for every kind of decay.

With S the state before a chunk (A = scores, reading, writing, total: see `decay`):

    out = A v + reading S          S_next = total S + writing^T v

Backward, with E the gradient of S_next; the decay turns dA, d(reading), d(writing) into dq, dk:

    dA = dO v^T     d(reading) = dO S^T     d(writing) = v E^T     dv = A^T dO + writing E
    E_previous = total E + reading^T dO
    dlog_decay_t = sum_{i >= t in the chunk} (q_i dq_i - k_i dk_i) + total sum_v(S E) + sum_j writing_j d(writing)_j

Chunks are worked through in segments that fit a cache. The products of a segment run as one batch; only states are
carried in a loop. The forward pass keeps the state before each segment, the backward pass recomputes everything else.

Sizes: B batch, T tokens, H query heads, K key and V value channels, C tokens in a chunk, R rows of states, S segments,
N = B H, n = N times the chunks of a segment.
Source: arXiv:2312.06635, section 4 and appendix C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.linear_attention.decay import Scores, repeated_
from attensor.ops.linear_attention.plan import Inputs, Plan
from attensor.ops.linear_attention.scan import scan

__all__ = ["Gradients", "chunk_backward", "chunk_forward"]


class Gradients(NamedTuple):
    """Gradients of the differentiable inputs, shaped as they are."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    initial_state: Tensor  # [R, B, H, K, V], given also when there was no initial state


def chunk_forward(inputs: Inputs, scale: float, chunk_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B, T, H, V] in v's dtype, final states [R, B, H, K, V], states before the segments [S, B, H, K, V]."""
    plan = Plan(inputs, chunk_size)
    out = plan.layout.new_output(inputs.v, (*inputs.q.shape[:3], plan.value_dim))
    table = plan.new_table(inputs.initial_state)
    segments = plan.segments()
    checkpoints = table.new_empty(len(segments), *table.shape[1:])
    for (first, last), checkpoint in zip(segments, checkpoints, strict=True):
        rows = plan.rows(first, last)
        checkpoint.copy_(table[0] if rows is None else table.index_select(0, rows[:1])[0])
        q, k, v = (plan.split(name, x, first, last) for name, x in zip("qkv", inputs[:3]))
        answers = plan.decay(first, last).forward(q, k)
        states = _states(plan, answers, v, table, rows)
        read = plan.product("increments", answers.reading, states)
        plan.join(torch.baddbmm(read, answers.scores, v, beta=scale, alpha=scale, out=read), out, first, last)
    return out, plan.states(table), checkpoints.view(len(segments), plan.batch, plan.heads, *table.shape[2:])


def chunk_backward(
    inputs: Inputs,
    checkpoints: Tensor,
    grad_out: Tensor,
    grad_final: Tensor,
    scale: float,
    chunk_size: int,
    *,
    decay_gradient: bool,
) -> Gradients:
    """Gradients from those of the output [B, T, H, V] and of the final states [R, B, H, K, V].

    Args:
        inputs, scale, chunk_size: as in `chunk_forward`; `checkpoints` is its third result.
        grad_out, grad_final: gradients of its first two results.
        decay_gradient: whether the gradient of the log decays is wanted.
    """
    plan = Plan(inputs, chunk_size)
    whole = [plan.layout.new_output(x, x.shape) for x in inputs[:3]]
    decay_grad = plan.new_decay_gradient() if decay_gradient else None
    table = plan.new_table(grad_final)
    for index, (first, last) in reversed(list(enumerate(plan.segments()))):
        q, k, v = (plan.split(name, x, first, last) for name, x in zip("qkv", inputs[:3]))
        grad = plan.split("grad", grad_out, first, last)
        decay = plan.decay(first, last, keep_levels=True)
        answers = decay.forward(q, k)
        states = _states(plan, answers, v, *plan.table_before(checkpoints[index].flatten(0, 1), first, last))
        grad_states = _states(plan, answers, grad, table, plan.rows(first, last), scale=scale, reverse=True)

        grad_v = plan.product("increments", answers.scores.mT, grad, scale)
        plan.join(torch.baddbmm(grad_v, answers.writing, grad_states, out=grad_v), whole[2], first, last)
        grad_writing = plan.product("grad_writing", v, grad_states.mT)
        grad_reading = plan.product("reading", grad, states.mT, scale)
        at_end = _gradient_at_end(answers, states, grad_states, grad_writing) if decay_gradient else None
        grad_scores = plan.product("scores", grad, v.mT, scale)
        grad_q, grad_k = decay.backward(q, k, grad_scores, grad_reading, grad_writing)
        plan.join(grad_q, whole[0], first, last)
        plan.join(grad_k, whole[1], first, last)
        if decay_grad is not None and at_end is not None:
            exponent = grad_q.mul_(q).addcmul_(k, grad_k, value=-1)
            plan.join_decay_gradient(exponent, at_end, decay_grad, first, last)
    return Gradients(whole[0], whole[1], whole[2], decay_grad, plan.states(table))


def _states(
    plan: Plan,
    answers: Scores,
    values: Tensor,
    table: Tensor,
    rows: Tensor | None,
    *,
    scale: float = 1.0,
    reverse: bool = False,
) -> Tensor:
    """The state before each chunk of a segment or (reverse) the gradient of that after it, [n, K, V].

    The table moves on. `values` are the values, or (reverse) the gradient of the output, which `scale` multiplies.
    """
    keys = answers.reading if reverse else answers.writing
    sizes = table.shape[1:]
    increments = plan.product("increments", keys.mT, values, scale).view(-1, *sizes)
    total = None if answers.total is None else answers.total.mT.view(-1, sizes[0], answers.total.shape[2], 1)
    space = plan.scratch.take("grad_states" if reverse else "states", increments.shape[0] + 1, *sizes)
    return scan(increments, total, table, rows, space, reverse=reverse).flatten(0, 1)


def _gradient_at_end(answers: Scores, states: Tensor, grad_states: Tensor, grad_writing: Tensor) -> Tensor:
    """Gradient of G_last, [n, 1, K], as far as it is not in q_i dq_i - k_i dk_i; overwrites states and writing."""
    kept = states.mul_(grad_states).sum(-1).unsqueeze(1)
    if answers.total is not None:
        repeated_(kept, answers.total)
    return kept.add_(answers.writing.mul_(grad_writing).sum(1, keepdim=True))
