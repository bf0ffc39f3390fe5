"""The torch and C++ forms: numerator and denominator, its last column, in one sum by any method, with all derivatives.

Nothing but the inputs is kept for backward.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attensor.ops import _packing
from attensor.ops._kernel import Tensors, differentiable
from attensor.ops._precision import full_precision
from attensor.ops.relative_kernel_attention.cost import faster_algorithm
from attensor.ops.relative_kernel_attention.library import cpp_backward, cpp_forward, fourier, fourier_gradients
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands, Problem
from attensor.ops.relative_kernel_attention.prepare import Rows, features, heads_first, log_weights
from attensor.ops.relative_kernel_attention.reference import define, dense_sum
from attensor.ops.relative_kernel_attention.tiles import tiles_backward, tiles_forward

__all__ = ["attend", "why_not_cpp"]

_Method = Literal["tiles", "fft", "cpp"]
_Options = tuple[Geometry, _Method]

# y [B, H, Tq, V + 1], whose last column is the sum of the weights, and the gradients of q, k, v and the coefficients
_METHODS = {
    "tiles": (tiles_forward, tiles_backward),
    "fft": (fourier, fourier_gradients),
    "cpp": (cpp_forward, cpp_backward),
}


def _forward(tensors: Tensors, options: _Options, keep: bool) -> tuple[Tensor]:
    x, (geometry, method) = Operands(*tensors), options
    with full_precision(x.q):
        return (_METHODS[method][0](x, geometry).contiguous(),)


def _backward(
    tensors: Tensors, kept: tuple[Tensor, ...], grads: Tensors, options: _Options, needs: tuple[bool, ...]
) -> Tensors:
    x, (geometry, method) = Operands(*tensors), options
    with full_precision(x.q):
        found = _METHODS[method][1](x, grads[0], geometry)
    return *(g.contiguous() if needed else None for g, needed in zip(found, needs)), None


def _definition(tensors: Tensors, options: _Options) -> tuple[Tensor]:
    return (dense_sum(Operands(*tensors), options[0]),)


# (q, k, v, coefficients, segment) of `Operands` to y [B, H, Tq, V + 1]; mapped dimensions become further heads, because
# coefficients have no batch
_kernel_sum = differentiable(_forward, _backward, _definition, batch_dims=(1, 1, 1, 0, None), out_dims=(1,))


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
    weights = log_weights(bias.to(values.dtype), geometry)
    # a factor common to all offsets of a head cancels; without this one, large biases would overflow
    largest = weights.detach().flatten(1).amax(1) if weights.numel() else weights.new_zeros(weights.shape[0])
    coefficients = (weights - largest.view(-1, *[1] * (weights.ndim - 1))).exp()
    x = Operands(*heads_first(phi_q, phi_k, values), coefficients, segment)
    out = torch.unflatten(_ratio(x, geometry, problem.algorithm, backend).transpose(1, 2), 1, geometry.queries)
    return (out if rows is None else rows.pack(out)).to(problem.v.dtype)


def _ratio(x: Operands, geometry: Geometry, algorithm: str | None, backend: str) -> Tensor:
    """[B, H, Tq, V]."""
    if x.segment is not None:
        algorithm = "tiles"  # transforms know no segments
    algorithm = algorithm or faster_algorithm(geometry, x.q.shape[-1], x.v.shape[-1] + 1, backend)
    if algorithm == "tiles" and geometry.queries == (1,) and x.segment is None:
        return _one_query(x)
    dtype = torch.float64 if algorithm == "fft-float64" else x.q.dtype
    method: _Method = "fft" if algorithm != "tiles" else "cpp" if backend == "cpp" else "tiles"
    (sums,) = _kernel_sum((*(t.to(dtype) for t in x[:4]), x.segment), (geometry, method))
    numerator, denominator = sums[..., :-1], sums[..., -1:]
    minimum = torch.zeros_like(denominator)
    if method == "fft" and denominator.numel():
        # what lies below is rounding, and may be negative
        largest = denominator.detach().amax(2, keepdim=True)
        minimum = (8 * torch.finfo(sums.dtype).eps * largest).expand_as(denominator)
    floor = torch.where(minimum > 0, minimum, 1.0)
    return (numerator / torch.where(denominator > minimum, denominator, floor)).to(x.q.dtype)


def _one_query(x: Operands) -> Tensor:
    """Decoding: nothing is gained by tiles, which would copy keys and values."""
    with full_precision(x.q):
        weights = torch.matmul(x.q, x.k.mT) * x.coefficients[:, None]  # [B, H, 1, Tk]
        total = weights.sum(-1, keepdim=True)
        return torch.matmul(weights, x.v) / torch.where(total > 0, total, 1.0)
