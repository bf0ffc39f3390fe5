"""One token of `gated_delta_rule`, as decoding asks for it; every derivative is torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.gated_delta_rule.problem import DeltaProblem, repeated

__all__ = ["step"]


def step(problem: DeltaProblem) -> tuple[Tensor, Tensor]:
    """One token, as decoding asks for it: the state is read once, by key and query, and written once."""
    q, v = problem.q[:, 0], problem.v
    dtype, heads, gate = working_dtype(q, v), q.shape[1], problem.log_decay
    k, values, beta = (repeated(x[:, 0].to(dtype), heads, 1) for x in (problem.k, v, problem.beta))
    state = problem.initial_state
    if state is None:
        state = q.new_zeros(*q.shape, v.shape[3], dtype=dtype)
    state = state.to(dtype)
    if gate is not None:
        state = state * repeated(gate[:, 0].to(dtype), heads, 1).exp()[..., None, None]
    q = q.to(dtype)
    with full_precision(q):
        read = torch.stack([k, q], 2) @ state  # [B, H, 2, V]
    new = beta.unsqueeze(-1) * (values - read[:, :, 0])
    out = read[:, :, 1] + (q * k).sum(-1, keepdim=True) * new
    # a product of a column and a row takes twice as long
    return (problem.factor * out).to(v.dtype).unsqueeze(1), torch.addcmul(state, k.unsqueeze(-1), new.unsqueeze(-2))
