"""The gated delta rule in chunks, of the sequences of a call: the portable form, as a function with derivatives.

Chunks are worked through in segments that fit a cache; the forward pass keeps the state before each, the backward pass
computes a segment anew. What happens in a segment: `segment`.
"""

# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attensor.ops._confine import is_finite
from attensor.ops._kernel import differentiable, register
from attensor.ops._precision import full_precision
from attensor.ops.gated_delta_rule.definition import define
from attensor.ops.gated_delta_rule.problem import DeltaInputs, DeltaProblem, repeated
from attensor.ops.gated_delta_rule.segment import Segment, differentiate, run_segment
from attensor.ops.gated_delta_rule.step import step
from attensor.ops.linear_attention.chunked import Chunks, count_segments, states_unread
from attensor.ops.linear_attention.problem import sum_heads

__all__ = ["run"]


def run(problem: DeltaProblem) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] and states."""
    inputs, factor, size = problem.inputs, problem.factor, problem.tokens_per_chunk
    if problem.cu_seqlens is None and problem.q.shape[1] == 1:
        return step(problem)
    out, state = _recurrence(inputs, (factor, size))
    # a key or value that is not finite spoils the states after it, and in products of a chunk earlier outputs
    if size > 1 and not is_finite(state):
        out, state = _recurrence(inputs, (factor, 1))
    return out, state.squeeze(problem.batch_dim)


def _read(inputs: DeltaInputs, chunks: Chunks, own: slice, states: tuple[Tensor, Tensor]) -> Segment:
    """Everything that a segment needs; `states` are that before it and those that sequences begin with."""
    (state, initial), begins, starts = states, None, None
    if chunks.token is not None:
        starts, begins = chunks.starts[own], initial[chunks.sequence[own].clamp(max=len(initial) - 1)]

    def cut(x: Tensor) -> Tensor:
        own_tokens = chunks.cut(x if x.ndim == 4 else x.unsqueeze(-1), own)
        return repeated(own_tokens, chunks.heads, 2).flatten(1, 2)

    q, k, v, beta = (cut(x) for x in inputs[:4])
    gates = None if inputs.log_decay is None else cut(inputs.log_decay)
    return Segment(q, k, v, beta, gates, state, begins, starts)


def _forward(inputs: DeltaInputs, scale: float, size: int, kept_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    with full_precision(inputs.q), torch.no_grad():  # an exporter comes here with gradients on
        chunks = Chunks(inputs, size, kept_rows)
        initial = chunks.initial()
        out = inputs.new_output() if chunks.token is None else inputs.new_output().zero_()
        kept = initial.new_empty(kept_rows, *initial.shape[1:])
        final = torch.cat([initial, initial.new_zeros(1, *initial.shape[1:])])
        state = final[0]
        for number, own in enumerate(chunks.slices()):
            if kept_rows:
                kept[number] = state
            found, after = run_segment(_read(inputs, chunks, own, (state, initial)), scale)
            state = after[-1]
            chunks.join(found.unflatten(1, (chunks.batch, -1)), out, own)
            if chunks.token is None:
                final[0].copy_(state)
            else:
                final.index_copy_(0, chunks.writes[own], after)
    sizes = (chunks.batch, chunks.heads)
    return out, final[: inputs.rows].unflatten(1, sizes).contiguous(), kept.unflatten(1, sizes)


def _backward(
    inputs: DeltaInputs, kept: Tensor, grad_out: Tensor, grad_final: Tensor, scale: float, size: int
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, beta, log_decay (or None) and the initial state [R, B, H, K, V]."""
    with full_precision(inputs.q), torch.no_grad():
        chunks = Chunks(inputs, size, len(kept))
        initial, grad_final = chunks.initial(), grad_final.to(chunks.dtype).flatten(1, 2)
        make = torch.empty_like if chunks.token is None else torch.zeros_like
        grads = [None if x is None else make(x, memory_format=torch.contiguous_format) for x in inputs[:5]]
        after = grad_final if chunks.token is None else torch.cat([grad_final, torch.zeros_like(initial[:1])])
        state, of_initial = after[-1], states_unread(inputs, grad_final)
        for number, own in reversed(list(enumerate(chunks.slices()))):
            ends = state[None]
            if chunks.token is not None:
                ends = after[chunks.writes[own]]
                ends[-1] += state
            part = _read(inputs, chunks, own, (kept[number].flatten(0, 1), initial))
            coming = scale * chunks.cut(grad_out, own).flatten(1, 2)
            found, state, of_begins = differentiate(part, coming, ends)
            for x, grad in zip(found, grads):
                if x is not None and grad is not None:
                    wide = grad if grad.ndim == 4 else grad.unsqueeze(-1)
                    chunks.join(sum_heads(x.unflatten(1, (chunks.batch, -1)), wide), wide, own)
            if of_begins is not None:
                of_initial.index_add_(0, chunks.sequence[own].clamp(max=inputs.rows - 1), of_begins)
    if chunks.token is None:
        of_initial = state[None].clone()
    return (*grads, of_initial.unflatten(1, (chunks.batch, chunks.heads)))


def _useful(q: Any, k: Any, v: Any, *_: Any) -> int:
    """Operations of a pass: a state read by key, written and read by query, for each token and head."""
    count: int = 6 * q[0] * q[1] * q[2] * q[3] * v[3]
    return count


def _fake(inputs: DeltaInputs, *options: Any) -> tuple[Tensor, ...]:
    return inputs.new_output(), inputs.new_states(inputs.rows), inputs.new_states(options[-1])


def _fake_backward(inputs: DeltaInputs, *_: Any) -> tuple[Tensor | None, ...]:
    grads = (None if x is None else x.new_empty(x.shape) for x in inputs[:5])
    return (*grads, inputs.new_states(inputs.rows))


_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? log_decay, Tensor? initial_state, Tensor? cu_seqlens"
_SHARED: dict[str, Any] = {"devices": ("CompositeExplicitAutograd",), "gather": DeltaInputs}
_forward_kernel = register(
    f"gated_delta_rule({_TENSORS}, float scale, int chunk_size, SymInt kept_rows) -> (Tensor, Tensor, Tensor)",
    _forward, _fake, flops=_useful, **_SHARED,
)  # fmt: skip
_backward_kernel = register(
    f"gated_delta_rule_backward({_TENSORS}, Tensor kept, Tensor grad_out, Tensor grad_final, float scale, "
    "int chunk_size) -> (Tensor, Tensor, Tensor, Tensor, Tensor?, Tensor)",
    _backward, _fake_backward, flops=lambda *shapes: 2 * _useful(*shapes), **_SHARED,
)  # fmt: skip


def _passed(tensors: Any, options: Any, keep: bool) -> tuple[Tensor, ...]:
    rows = count_segments(DeltaInputs(*tensors), options[1]) if keep else 0
    return tuple(_forward_kernel(*tensors, *options, rows))


def _returned(tensors: Any, kept: Any, grads: Any, options: Any, needs: Any) -> tuple[Tensor | None, ...]:
    inputs = DeltaInputs(*tensors)
    grad_out = inputs.new_output().zero_() if grads[0] is None else grads[0]
    grad_final = inputs.new_states(inputs.rows).zero_() if grads[1] is None else grads[1]
    found = _backward_kernel(*inputs, kept[0], grad_out, grad_final, *options)
    of_state = None if inputs.initial_state is None else found[5].to(inputs.initial_state.dtype)
    return tuple(g if needed else None for g, needed in zip((*found[:5], of_state, None), needs))


_recurrence = differentiable(
    _passed,
    _returned,
    lambda tensors, options: define(DeltaInputs(*tensors), options[0]),
    # where the batch stands in the inputs, the outputs and the kept states
    batch_dims=(0, 0, 0, 0, 0, 1, None),
    out_dims=(0, 1),
    kept_dims=(1,),
)
