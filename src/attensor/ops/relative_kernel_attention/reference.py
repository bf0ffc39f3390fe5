"""The definition of kernelised attention with relative positions: all weights in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops import _packing
from attensor.ops._precision import full_precision
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands, Problem
from attensor.ops.relative_kernel_attention.prepare import features, heads_first, log_weights

__all__ = ["define", "dense_sum"]


def define(problem: Problem) -> Tensor:
    """The result of `relative_kernel_attention`, all weights in memory."""
    q, k, v, cu_seqlens = problem.q, problem.k, problem.v, problem.cu_seqlens
    phi_q, phi_k, values = features(problem)
    geometry = Geometry(tuple(q.shape[1:-2]), tuple(k.shape[1:-2]), problem.is_causal)
    coefficients = log_weights(problem.relative_bias.to(values.dtype), geometry).exp()
    segment = None if cu_seqlens is None else _packing.sequence_index(cu_seqlens, q.shape[1])
    sums = dense_sum(Operands(*heads_first(phi_q, phi_k, values), coefficients, segment), geometry)
    total = sums[..., -1:]
    out = sums[..., :-1] / total.masked_fill(total == 0, 1.0)
    return torch.unflatten(out.transpose(1, 2), 1, geometry.queries).to(v.dtype)


def dense_sum(x: Operands, geometry: Geometry) -> Tensor:
    """[B, H, Tq, V + 1]: the values weighted by phi_q_i . phi_k_j c_{j - i}, and the sum of the weights."""
    at = [
        torch.arange(m, device=x.q.device) - torch.arange(n, device=x.q.device)[:, None] + n - 1
        for n, m in zip(geometry.queries, geometry.keys)
    ]
    if len(at) == 1:
        weight = x.coefficients[:, at[0]]
    else:
        weight = x.coefficients[:, at[0][:, None, :, None], at[1][None, :, None, :]].flatten(3, 4).flatten(1, 2)
    if x.segment is not None:
        weight = weight * (x.segment[:, None] == x.segment)
    with full_precision(x.q):
        weights = torch.matmul(x.q, x.k.mT) * weight
        return torch.cat([torch.matmul(weights, x.v), weights.sum(-1, keepdim=True)], -1)
