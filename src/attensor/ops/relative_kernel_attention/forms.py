"""The torch and C++ forms: numerator and denominator in one sum by any method, with all derivatives.

Nothing but the inputs, the result and the denominators is kept for backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops import _packing
from attensor.ops._kernel import Tensors, differentiable
from attensor.ops.relative_kernel_attention.library import attention, attention_gradients
from attensor.ops.relative_kernel_attention.operands import Geometry, Inputs, Problem
from attensor.ops.relative_kernel_attention.prepare import Rows, features, heads_first, offset_biases
from attensor.ops.relative_kernel_attention.reference import define, dense, one_query

__all__ = ["attend", "why_not_cpp"]

_Options = tuple[Geometry, str, str]  # algorithm, empty for the faster one, and back-end


def _forward(tensors: Tensors, options: _Options, keep: bool) -> tuple[Tensor, Tensor]:
    geometry, algorithm, backend = options
    out, total = attention(*tensors, *geometry, algorithm, backend)
    return out, total


def _backward(
    tensors: Tensors, kept: tuple[Tensor, ...], grads: Tensors, options: _Options, needs: tuple[bool, ...]
) -> Tensors:
    (total, out), (geometry, algorithm, backend) = kept, options
    found = attention_gradients(*tensors, out, total, grads[0], *geometry, algorithm, backend)
    return *(g if needed else None for g, needed in zip(found, needs)), None


def _definition(tensors: Tensors, options: _Options) -> tuple[Tensor]:
    return (dense(Inputs(*tensors), options[0]),)


# `Inputs` to z [B, H, Tq, V]; mapped dimensions become further heads, because biases have no batch
_attention = differentiable(
    _forward, _backward, _definition, batch_dims=(1, 1, 1, 0, None), out_dims=(1,), kept_dims=(1,), keep_outputs=True
)


def why_not_cpp(problem: Problem) -> str | None:
    """The reason why C++ cannot compute the problem."""
    if problem.algorithm in ("fft", "fft-float64"):
        return "cpp has tiles, Fourier transforms are torch's"
    if problem.cu_seqlens is not None and problem.max_seqlen is None:
        return "cpp needs max_seqlen for packed sequences"
    return None


def attend(problem: Problem, backend: str) -> Tensor:
    """See `relative_kernel_attention`; back-end cpp: tiles in C++."""
    if not all(t.numel() for t in (problem.q, problem.k, problem.v)):
        return define(problem)
    phi_q, phi_k, values = features(problem)
    rows = segment = None
    if problem.cu_seqlens is not None and problem.max_seqlen is not None:
        tokens = problem.q.shape[1]
        rows = Rows(problem.cu_seqlens, min(problem.max_seqlen, tokens), tokens)
        phi_q, phi_k, values = (rows.unpack(t) for t in (phi_q, phi_k, values))
    elif problem.cu_seqlens is not None:
        segment = _packing.sequence_index(problem.cu_seqlens, problem.q.shape[1])
    bias = problem.relative_bias
    reach = bias.shape[1] // 2 if bias.ndim == 2 else None
    geometry = Geometry(tuple(phi_q.shape[1:-2]), tuple(phi_k.shape[1:-2]), problem.is_causal, reach)
    x = Inputs(*heads_first(phi_q, phi_k, values), offset_biases(bias.to(values.dtype), geometry), segment)
    if geometry.queries == (1,) and problem.algorithm in (None, "tiles"):
        out = one_query(x, geometry)  # decoding: nothing is gained by tiles, which would copy keys and values
    else:
        (out,) = _attention(x, (geometry, problem.algorithm or "", backend))
    out = torch.unflatten(out.transpose(1, 2), 1, geometry.queries)
    return (out if rows is None else rows.pack(out)).to(problem.v.dtype)
