"""Kernel sums in C++: what `tiles` computes, without a copy of the tiles and with the row sums beside.

Sizes: B batch, H heads, M features, V values, E cells in a tile of queries or keys.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops._native.loading import argument_of
from attensor.ops._native.tensors import TensorView, kernel, readable
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands

__all__ = ["Near", "backward", "forward"]

_TENSORS = "q k v out grad_out grad_q grad_k grad_v"
_SHORT = "heads features values is_causal threads"
_LONG = "batch queries keys query_rows query_width key_width offsets shift query_tile key_tile first last"


class Near(NamedTuple):
    """Which keys are summed: a tile I of queries meets the tiles I + first to I + last of keys."""

    query_tile: int
    key_tile: int
    first: int
    last: int


@argument_of("kernel_sum")
class _KernelSum(ctypes.Structure):
    """`KernelSum` of kernel_sum.cpp."""

    _fields_ = (
        *((name, TensorView) for name in _TENSORS.split()),
        *((name, ctypes.c_void_p) for name in ("coefficients", "grad_coefficients")),
        *((name, ctypes.c_int64) for name in _LONG.split()),
        *((name, ctypes.c_int32) for name in _SHORT.split()),
    )


def forward(x: Operands, geometry: Geometry, near: Sequence[int]) -> Tensor:
    """[B, H, Tq, V + 1]: the kernel sum of v, and of ones in the last column."""
    out = x.q.new_empty(*x.q.shape[:3], x.v.shape[3] + 1)
    _run(x, geometry, near, {"out": out}, None)
    return out


def backward(x: Operands, grad: Tensor, geometry: Geometry, near: Sequence[int]) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and the coefficients from that of the sum [B, H, Tq, V + 1]."""
    grads = {"grad_q": x.q.new_empty(x.q.shape), "grad_k": x.k.new_zeros(x.k.shape), "grad_v": x.v.new_zeros(x.v.shape)}
    grad_coefficients = x.coefficients.new_zeros(x.q.shape[0], *x.coefficients.shape)
    _run(x, geometry, near, {"grad_out": grad, **grads}, grad_coefficients)
    return *grads.values(), grad_coefficients.sum(0)


def _run(
    x: Operands, geometry: Geometry, near: Sequence[int], tensors: dict[str, Tensor], grad_coefficients: Tensor | None
) -> None:
    """Call C++: `tensors` by the names of `KernelSum`; grad_coefficients [B, H, *offsets] zeros, or None: forward."""
    views = {name: readable(t) for name, t in {"q": x.q, "k": x.k, "v": x.v, **tensors}.items()}
    coefficients = x.coefficients.contiguous()
    rows = geometry.queries[0] if len(geometry.queries) == 2 else 1  # a sequence is one row
    problem = _KernelSum(
        # B, T, H, D of [B, H, T, D]
        **{name: TensorView.of(t.transpose(1, 2)) for name, t in views.items()},
        coefficients=coefficients.data_ptr(),
        grad_coefficients=None if grad_coefficients is None else grad_coefficients.data_ptr(),
        batch=x.q.shape[0],
        queries=x.q.shape[2],
        keys=x.k.shape[2],
        query_rows=rows,
        query_width=geometry.queries[-1],
        key_width=geometry.keys[-1],
        offsets=math.prod(geometry.offsets),
        shift=x.k.shape[2] - x.q.shape[2],
        **Near(*near)._asdict(),
        heads=x.q.shape[1],
        features=x.q.shape[3],
        values=x.v.shape[3],
        is_causal=geometry.is_causal,
        threads=torch.get_num_threads(),
    )
    if not kernel("kernel_sum", x.q.dtype)(ctypes.byref(problem), int(grad_coefficients is not None)):
        raise MemoryError("relative_kernel_attention: the cpp back-end got no memory.")
