"""The kernel sum with C++ tiles near a query; keys far away need no tiles: running sums (`far`)."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops.relative_kernel_attention.cpp import kernel_sum as cpp
from attensor.ops.relative_kernel_attention.far import Far, add_far, add_far_gradients
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands
from attensor.ops.relative_kernel_attention.tiles import Layout, ends, find_far

__all__ = ["cpp_backward", "cpp_forward", "pairs"]

_SLAB = 512  # queries for which keys are read once, when no key is far
_EVERYWHERE = 2**40


def cpp_forward(x: Operands, geometry: Geometry) -> Tensor:
    """y [B, H, Tq, V + 1]: the kernel sum of v, and of ones in the last column."""
    layout = Layout.of(geometry)
    far = find_far(x, layout)
    y = cpp.forward(x, geometry, _near(layout, far))
    if far is None:
        return y
    q, k, v = layout.split_all(x.with_ones())
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    add_far(out, (q, k, v), ends(x), far)
    return y.add_(layout.join(out, x.q))


def cpp_backward(x: Operands, grad: Tensor, geometry: Geometry) -> list[Tensor]:
    """Gradients of q, k, v and the coefficients from that of y [B, H, Tq, V + 1]."""
    layout = Layout.of(geometry)
    far = find_far(x, layout)
    found = list(cpp.backward(x, grad, geometry, _near(layout, far)))
    if far is None:
        return found
    q, k, v = tiles = layout.split_all(x.with_ones())
    grad_q, grad_k, grad_v = grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    found[3][:, [0, -1]] += add_far_gradients(grads, tiles, layout.split(grad, is_query=True), ends(x), far)
    for total, part in zip(found, (grad_q, grad_k, grad_v[..., :-1])):
        total += layout.join(part, total)
    return found


def pairs(geometry: Geometry, num_features: int, value_dim: int) -> int:
    """Pairs of one head that are seen and not far, without what else lies in their tiles."""
    layout = Layout.of(geometry)
    near = _near(layout, layout.far(num_features, value_dim))
    (queries, *across), (keys, *key_across) = geometry.queries, geometry.keys
    for sizes in zip(across, key_across):
        queries, keys = queries * sizes[0], keys * sizes[1]
    found = 0
    for query in range(queries):
        tile = query // near.query_tile
        first = max(0, (tile + near.first) * near.key_tile)
        last = min(keys, (tile + near.last + 1) * near.key_tile)
        if geometry.is_causal:
            last = min(last, query + keys - queries + 1)
        found += max(0, last - first)
    return found


def _near(layout: Layout, far: Far | None) -> cpp.Near:
    if far is None:
        return cpp.Near(_SLAB, _EVERYWHERE, -_EVERYWHERE, _EVERYWHERE)
    # sequences only: a tile has as many queries as rows
    first = -_EVERYWHERE if far.left is None else far.left + 1
    return cpp.Near(layout.q_rows, layout.k_rows, first, _EVERYWHERE if far.right is None else far.right - 1)
