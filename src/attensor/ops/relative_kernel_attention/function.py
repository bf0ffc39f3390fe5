"""The kernel sum by any method, with all derivatives; nothing but the inputs is kept for backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from attensor.ops._kernel import Tensors, differentiable
from attensor.ops._precision import full_precision
from attensor.ops.relative_kernel_attention.library import fourier, fourier_gradients
from attensor.ops.relative_kernel_attention.native import cpp_backward, cpp_forward
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands
from attensor.ops.relative_kernel_attention.reference import dense_sum
from attensor.ops.relative_kernel_attention.tiles import tiles_backward, tiles_forward

__all__ = ["Method", "Options", "kernel_sum"]

Method = Literal["tiles", "fft", "cpp"]


@dataclass(frozen=True)
class Options:
    """What is no tensor."""

    geometry: Geometry
    method: Method


def _forward(tensors: Tensors, options: Options, keep: bool) -> tuple[Tensor]:
    x, geometry = _operands(tensors), options.geometry
    with full_precision(x.q):
        if options.method == "cpp":
            return (cpp_forward(x, geometry),)
        return ((tiles_forward if options.method == "tiles" else fourier)(x.with_ones(), geometry).contiguous(),)


def _backward(
    tensors: Tensors,
    kept: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    options: Options,
    needs: tuple[bool, ...],
) -> Tensors:
    x, geometry, grad = _operands(tensors), options.geometry, grads[0]
    if grad is None:
        return (None,) * 5
    with full_precision(x.q):
        if options.method == "cpp":
            found = cpp_backward(x, grad, geometry)
        else:
            run = tiles_backward if options.method == "tiles" else fourier_gradients
            grad_q, grad_k, grad_v, grad_coefficients = run(x.with_ones(), grad, geometry)
            found = grad_q, grad_k, grad_v[..., :-1], grad_coefficients
    return *(g.contiguous() if needed else None for g, needed in zip(found, needs)), None


def _definition(tensors: Tensors, options: Options) -> tuple[Tensor]:
    return (dense_sum(_operands(tensors), options.geometry),)


def _operands(tensors: Tensors) -> Operands:
    q, k, v, coefficients, segment = tensors
    if q is None or k is None or v is None or coefficients is None:
        raise TypeError("relative_kernel_attention: q, k, v and the coefficients are tensors.")
    return Operands(q, k, v, coefficients, segment)


# (q, k, v, coefficients, segment) of `Operands` to y [B, H, Tq, V + 1]; mapped dimensions become further heads, because
# coefficients have no batch
kernel_sum = differentiable(_forward, _backward, _definition, batch_dims=(1, 1, 1, 0, None), out_dims=(1,))
