"""Linear attention in which every query sees every key of its sequence: two matrix products, O(T K V)."""
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops._packing import chunks_of
from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.linear_attention.problem import LinearAttentionProblem

__all__ = ["bidirectional"]

_CHUNK = 64  # packed tokens whose products of key and value are summed by one matrix product


def bidirectional(problem: LinearAttentionProblem) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] = scale q S in v's dtype, and S = initial_state + sum_j k_j v_j^T, [B or N, H, K, V]."""
    q, k, v = problem.q, problem.k, problem.v
    heads, dtype = q.shape[2], working_dtype(q, v)
    queries, keys, values = (x.to(dtype) for x in (q, k, v))
    token = sequence = None
    if problem.cu_seqlens is not None:
        # a batch of chunks, each of one sequence
        token, sequence = chunks_of(problem.cu_seqlens, q.shape[1], _CHUNK)
        taken = (x[0].index_select(0, token.flatten().clamp_min(0)) for x in (queries, keys, values))
        is_token = (token >= 0)[..., None, None]
        queries, keys, values = (torch.where(is_token, x.unflatten(0, token.shape), 0.0) for x in taken)
    with full_precision(q):
        state = keys.permute(0, 2, 3, 1) @ values.transpose(1, 2)
        if sequence is not None and problem.cu_seqlens is not None:
            rows = len(problem.cu_seqlens) - 1
            sums = state.new_zeros(rows + 1, *state.shape[1:])
            state = sums.index_add(0, sequence, state)[:rows]
        state = state.repeat_interleave(heads // k.shape[2], 1)
        if problem.initial_state is not None:
            state = state + problem.initial_state.to(dtype)
        read = state if sequence is None else state[sequence.clamp(max=max(len(state) - 1, 0))]
        out = problem.factor * (queries.transpose(1, 2) @ read).transpose(1, 2)
    if token is not None:
        whole = out.new_zeros(q.shape[1] + 1, *out.shape[2:])
        # slots without a token write to the last row, which is dropped
        places = torch.where(token >= 0, token, q.shape[1]).flatten()
        out = whole.index_add(0, places, out.flatten(0, 1))[None, :-1]
    return out.to(v.dtype), state
