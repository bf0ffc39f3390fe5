"""The definition of kernelised attention with relative positions: all weights in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops import _packing
from attensor.ops._confine import is_finite
from attensor.ops._kernel import is_direct
from attensor.ops._precision import full_precision
from attensor.ops.relative_kernel_attention.operands import Geometry, Inputs, Problem
from attensor.ops.relative_kernel_attention.prepare import features, heads_first, offset_biases
from attensor.ops.relative_kernel_attention.rows import mean, row_biases

__all__ = ["define", "dense", "one_query"]


def define(problem: Problem) -> Tensor:
    """The result of `relative_kernel_attention`, all weights in memory."""
    q, k, v, cu_seqlens = problem.q, problem.k, problem.v, problem.cu_seqlens
    phi_q, phi_k, values = features(problem)
    geometry = Geometry(tuple(q.shape[1:-2]), tuple(k.shape[1:-2]), problem.is_causal)
    biases = offset_biases(problem.relative_bias.to(values.dtype), geometry)
    segment = None if cu_seqlens is None else _packing.sequence_index(cu_seqlens, q.shape[1])
    out = dense(Inputs(*heads_first(phi_q, phi_k, values), biases, segment), geometry)
    return torch.unflatten(out.transpose(1, 2), 1, geometry.queries).to(v.dtype)


def dense(x: Inputs, geometry: Geometry) -> Tensor:
    """[B, H, Tq, V]: for every query the mean of the values, weighted by phi_q_i . phi_k_j exp(b_{j - i})."""
    if not x.k.shape[2]:
        return x.q.new_zeros(*x.q.shape[:3], x.v.shape[3])
    rows = torch.arange(x.q.shape[2], device=x.q.device)
    with full_precision(x.q):
        return mean(x.q, x.k, x.v, row_biases(x, geometry, slice(None), rows, x.k.shape[2]))


def one_query(x: Inputs, geometry: Geometry) -> Tensor:
    """`dense` of a query, in fewer steps where all numbers have their digits: biases are those of the keys in order."""
    if x.segment is None and x.q.device.type == "cpu" and is_direct(x[:4]):
        with full_precision(x.q):
            factor = (x.biases - x.biases.detach().amax(1, keepdim=True)).exp()
            weights = torch.matmul(x.q, x.k.mT) * factor[:, None]  # [B, H, 1, Tk]
            total = weights.sum(-1, keepdim=True)
            out = torch.matmul(weights, x.v) / total
        if total.detach().amin() > torch.finfo(total.dtype).tiny ** (2 / 3) and is_finite(out):
            return out
    return dense(x, geometry)
