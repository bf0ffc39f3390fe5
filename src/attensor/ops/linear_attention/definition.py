"""The definition of `linear_attention`: token by token, or by all pairs; every derivative is torch's."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from attensor.ops._precision import working_dtype
from attensor.ops.linear_attention.problem import Inputs

__all__ = ["define", "define_step"]


def define(inputs: Inputs, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] in v's dtype and final states [R, B, H, K, V], one sequence after the other."""
    q, k, v, log_decay, initial_state, cu_seqlens = inputs
    heads, dtype = q.shape[2], working_dtype(q, v)
    queries, keys, values = (x.to(dtype).repeat_interleave(heads // x.shape[2], 2) for x in (q, k, v))
    decay = None if log_decay is None else _of_tokens(log_decay, q).to(dtype).exp()  # [B, T, H, K or 1]
    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    outs, states = [], []
    for n, (start, stop) in enumerate(itertools.pairwise(bounds)):
        state = q.new_zeros(q.shape[0], heads, q.shape[3], v.shape[3], dtype=dtype)
        if initial_state is not None:
            state = state + initial_state[n].to(dtype)
        own = slice(start, stop)
        if is_causal:
            out, state = _causal(
                queries[:, own], keys[:, own], values[:, own], None if decay is None else decay[:, own], state
            )
        else:
            weights = torch.einsum("bihk,bjhk->bhij", queries[:, own], keys[:, own])
            out = torch.einsum("bhij,bjhv->bihv", weights, values[:, own])
            out = out + torch.einsum("bihk,bhkv->bihv", queries[:, own], state)
            state = state + torch.einsum("bjhk,bjhv->bhkv", keys[:, own], values[:, own])
        outs.append(out)
        states.append(state)
    outs.append(values.new_zeros(*q.shape[:1], q.shape[1] - bounds[-1], heads, v.shape[3]))
    none = values.new_zeros(0, q.shape[0], *q.shape[2:], v.shape[3])
    return (scale * torch.cat(outs, 1)).to(v.dtype), torch.stack(states) if states else none


def _causal(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    outs = [v[:, :0]]
    for t in range(q.shape[1]):
        out, state = _advance(q[:, t], k[:, t], v[:, t], None if decay is None else decay[:, t], state)
        outs.append(out.unsqueeze(1))
    return torch.cat(outs, 1), state


def _advance(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """S' = diag(decay) S + k v^T and q S' for one token, [B, H, ...]; decay is [B, H, K or 1]."""
    if decay is not None:
        state = decay.unsqueeze(-1) * state
    state = state + k.unsqueeze(-1) * v.unsqueeze(-2)
    return (q.unsqueeze(-1) * state).sum(-2), state


def define_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One token: output [B, H, V] in v's dtype and the new state [B, H, K, V]; log_decay is [B, H, K or 1]."""
    dtype, groups = working_dtype(q, v), q.shape[1] // k.shape[1]
    keys, values = (x.to(dtype).repeat_interleave(groups, 1) for x in (k, v))
    decay = None if log_decay is None else log_decay.to(dtype).exp()
    out, new = _advance(q.to(dtype), keys, values, decay, state.to(dtype))
    return (scale * out).to(v.dtype), new


def _of_tokens(log_decay: Tensor, q: Tensor) -> Tensor:
    """Decays of any kind as [B, T, H, K or 1]."""
    batch, tokens, heads, _ = q.shape
    if log_decay.ndim == 2:
        log_decay = log_decay.unsqueeze(1).expand(batch, tokens, -1)
    full = log_decay if log_decay.ndim == 4 else log_decay.unsqueeze(-1)
    return full.repeat_interleave(heads // full.shape[2], 2)
