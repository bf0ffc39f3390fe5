"""The definition of `linear_attention`, one token at a time."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

__all__ = ["reference"]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Arguments as the public function's after its checks; returns the output and the final states."""
    heads = q.shape[2]
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = log_decay.expand(*q.shape[:2], -1)
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay.unsqueeze(-1)
    k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
    log_decay = None if log_decay is None else log_decay.repeat_interleave(heads // log_decay.shape[2], 2)
    if cu_seqlens is None:
        return _recurrence(q, k, v, log_decay, scale, initial_state)
    outs, states = [], []
    bounds = cu_seqlens.tolist()
    for n, (start, stop) in enumerate(itertools.pairwise(bounds)):
        decay = None if log_decay is None else log_decay[:, start:stop]
        state = None if initial_state is None else initial_state[n : n + 1]
        out, state = _recurrence(q[:, start:stop], k[:, start:stop], v[:, start:stop], decay, scale, state)
        outs.append(out)
        states.append(state)
    outs.append(v.new_zeros(1, q.shape[1] - bounds[-1], heads, v.shape[-1]))
    return torch.cat(outs, dim=1), torch.cat(states or [q.new_zeros(0, heads, q.shape[-1], v.shape[-1])])


def _recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T and o_t = scale q_t S_t, for [B, T, H, ...] of equal heads."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    batch, tokens, heads, key_dim = q.shape
    if state is None:
        state = q.new_zeros(batch, heads, key_dim, v.shape[-1])
    state = state.to(dtype)
    queries, keys, values = q.to(dtype).unsqueeze(-1), k.to(dtype).unsqueeze(-1), v.to(dtype).unsqueeze(-2)
    decay = None if log_decay is None else log_decay.to(dtype).exp().unsqueeze(-1)
    outs = [v[:, :0]]
    for t in range(tokens):
        if decay is not None:
            state = decay[:, t] * state
        state = state + keys[:, t] * values[:, t]
        outs.append(scale * (queries[:, t] * state).sum(-2).unsqueeze(1).to(v.dtype))
    return torch.cat(outs, dim=1), state
