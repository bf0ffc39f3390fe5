"""The kernel sum in C++: tiles near a query there, those far away by running sums."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops.relative_kernel_attention.cpp.kernel_sum import Near
from attensor.ops.relative_kernel_attention.far import Far, add_far, add_far_gradients
from attensor.ops.relative_kernel_attention.library import near_gradients, near_sum
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands
from attensor.ops.relative_kernel_attention.tiles import Layout, ends, find_far

__all__ = ["cpp_backward", "cpp_forward"]

_SLAB = 512  # queries for which keys are read once, when no key is far
_EVERYWHERE = 2**40


def cpp_forward(x: Operands, geometry: Geometry) -> Tensor:
    """y [B, H, Tq, V + 1]: the kernel sum of v, and of ones in the last column."""
    layout = Layout.of(geometry)
    far = find_far(x, layout)
    y = near_sum(x, geometry, _near(layout, far))
    if far is None:
        return y
    q, k, v = _split(x, layout)
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    add_far(out, (q, k, v), ends(x), far)
    return y.add_(layout.join(out, x.q))


def cpp_backward(x: Operands, grad: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the coefficients from that of y [B, H, Tq, V + 1]."""
    layout = Layout.of(geometry)
    far = find_far(x, layout)
    grad_q, grad_k, grad_v, grad_coefficients = near_gradients(x, grad, geometry, _near(layout, far))
    if far is None:
        return grad_q, grad_k, grad_v, grad_coefficients
    q, k, v = tiles = _split(x, layout)
    grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    grad_coefficients[:, [0, -1]] += add_far_gradients(grads, tiles, layout.split(grad, is_query=True), ends(x), far)
    grad_q += layout.join(grads[0], x.q)
    grad_k += layout.join(grads[1], x.k)
    grad_v += layout.join(grads[2], x.v)[..., :-1]
    return grad_q, grad_k, grad_v, grad_coefficients


def _near(layout: Layout, far: Far | None) -> Near:
    if far is None:
        return Near(_SLAB, _EVERYWHERE, -_EVERYWHERE, _EVERYWHERE)
    # sequences only: a tile has as many queries as rows
    first = -_EVERYWHERE if far.left is None else far.left + 1
    return Near(layout.q_rows, layout.k_rows, first, _EVERYWHERE if far.right is None else far.right - 1)


def _split(x: Operands, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, and v with ones behind, as tiles."""
    values = x.with_ones().v
    return layout.split(x.q, is_query=True), layout.split(x.k, is_query=False), layout.split(values, is_query=False)
