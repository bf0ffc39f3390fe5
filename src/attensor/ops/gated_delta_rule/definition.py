"""The definition of `gated_delta_rule`: token by token; every derivative is torch's."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from attensor.ops._precision import working_dtype
from attensor.ops.gated_delta_rule.problem import DeltaInputs

__all__ = ["define"]


def define(inputs: DeltaInputs, scale: float) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] in v's dtype and final states [R, B, H, K, V], one sequence after the other."""
    q, _, v, _, log_decay, initial_state, cu_seqlens = inputs
    heads, dtype = q.shape[2], working_dtype(q, v)
    queries, keys, values, beta = (x.to(dtype).repeat_interleave(heads // x.shape[2], 2) for x in inputs[:4])
    kept = torch.ones_like(beta)
    if log_decay is not None:
        kept = log_decay.to(dtype).exp().repeat_interleave(heads // log_decay.shape[2], 2)
    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    outs, states = [], []
    for n, (start, stop) in enumerate(itertools.pairwise(bounds)):
        state = q.new_zeros(q.shape[0], heads, q.shape[3], v.shape[3], dtype=dtype)
        if initial_state is not None:
            state = state + initial_state[n].to(dtype)
        for t in range(start, stop):
            state = kept[:, t, :, None, None] * state
            error = values[:, t] - (keys[:, t, :, :, None] * state).sum(-2)
            state = state + keys[:, t, :, :, None] * (beta[:, t, :, None] * error).unsqueeze(-2)
            outs.append((queries[:, t, :, :, None] * state).sum(-2))
        states.append(state)
    # tokens after the last bound are of no sequence
    outs += [torch.zeros_like(x) for x in values.repeat_interleave(heads // values.shape[2], 2).unbind(1)[bounds[-1] :]]
    out = torch.stack(outs, 1) if outs else values.new_zeros(*q.shape[:3], v.shape[3])
    none = values.new_zeros(0, q.shape[0], *q.shape[2:], v.shape[3])
    return (scale * out).to(v.dtype), torch.stack(states) if states else none
