"""The kernel sum by operators of PyTorch's library, which a compiler takes as they are: Fourier transforms, C++ tiles.

Compilers have no code for complex numbers and would trace every group of transforms. What they see here is one call.
Keys far away from a query need no tiles: running sums (`far`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attensor.ops._kernel import register
from attensor.ops.relative_kernel_attention.cost import transform_flops
from attensor.ops.relative_kernel_attention.cpp import kernel_sum as cpp
from attensor.ops.relative_kernel_attention.far import Far, add_far, add_far_gradients
from attensor.ops.relative_kernel_attention.fourier import fourier_backward, fourier_forward
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands
from attensor.ops.relative_kernel_attention.tiles import Layout, ends, find_far

__all__ = ["cpp_backward", "cpp_forward", "fourier", "fourier_gradients"]

_SLAB = 512  # queries for which keys are read once, when no key is far
_EVERYWHERE = 2**40

Kernel = Callable[..., Any]


def fourier(x: Operands, geometry: Geometry) -> Tensor:
    """See `fourier_forward`."""
    y: Tensor = _fourier(*x[:4], *geometry[:3], ())
    return y


def fourier_gradients(x: Operands, grad: Tensor, geometry: Geometry) -> list[Tensor]:
    """See `fourier_backward`."""
    return list(_fourier_backward(*x[:4], grad, *geometry[:3], ()))


def cpp_forward(x: Operands, geometry: Geometry) -> Tensor:
    """y [B, H, Tq, V + 1]: the kernel sum of v, and of ones in the last column."""
    layout = Layout.of(geometry)
    far = find_far(x, layout)
    y: Tensor = _tiles(*x[:4], *geometry[:3], tuple(_near(layout, far)))
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
    found = list(_tiles_backward(*x[:4], grad, *geometry[:3], tuple(_near(layout, far))))
    if far is None:
        return found
    q, k, v = tiles = layout.split_all(x.with_ones())
    grad_q, grad_k, grad_v = grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    found[3][:, [0, -1]] += add_far_gradients(grads, tiles, layout.split(grad, is_query=True), ends(x), far)
    for total, part in zip(found, (grad_q, grad_k, grad_v[..., :-1])):
        total += layout.join(part, total)
    return found


def _near(layout: Layout, far: Far | None) -> cpp.Near:
    if far is None:
        return cpp.Near(_SLAB, _EVERYWHERE, -_EVERYWHERE, _EVERYWHERE)
    # sequences only: a tile has as many queries as rows
    first = -_EVERYWHERE if far.left is None else far.left + 1
    return cpp.Near(layout.q_rows, layout.k_rows, first, _EVERYWHERE if far.right is None else far.right - 1)


def _registered(
    name: str, forward: Kernel, backward: Kernel, flops: Kernel, flops_backward: Kernel, devices: Sequence[str]
) -> tuple[Kernel, Kernel]:
    """Both passes, (x, geometry, near) -> y and (x, grad, geometry, near) -> gradients, as operators of the library."""

    def run(*arguments: Any) -> Tensor:
        q, k, v, coefficients, queries, keys, is_causal, near = arguments
        geometry = Geometry(tuple(queries), tuple(keys), is_causal)
        y: Tensor = forward(Operands(q, k, v, coefficients, None), geometry, near)
        return y.contiguous()

    def run_backward(*arguments: Any) -> tuple[Tensor, ...]:
        q, k, v, coefficients, grad, queries, keys, is_causal, near = arguments
        geometry = Geometry(tuple(queries), tuple(keys), is_causal)
        return tuple(g.contiguous() for g in backward(Operands(q, k, v, coefficients, None), grad, geometry, near))

    tensors, sizes = "Tensor q, Tensor k, Tensor v, Tensor coefficients", "SymInt[] queries, SymInt[] keys"
    return register(
        f"{name}({tensors}, {sizes}, bool is_causal, int[] near) -> Tensor",
        run, lambda q, k, v, *_: q.new_empty(*q.shape[:3], v.shape[3] + 1), flops=flops, devices=devices,
    ), register(
        f"{name}_backward({tensors}, Tensor grad, {sizes}, bool is_causal, int[] near) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        run_backward, lambda *x: tuple(t.new_empty(t.shape) for t in x[:4]), flops=flops_backward, devices=devices,
    )  # fmt: skip


def _fourier_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *rest: Any) -> int:
    """Of the transforms."""
    *_, queries, keys, _, _ = rest
    return round(q[0] * q[1] * transform_flops(Geometry(tuple(queries), tuple(keys), False), q[3], v[3] + 1))


def _pairs(q: Sequence[int], k: Sequence[int], *rest: Any) -> int:
    """Pairs that are seen, over batch and heads, without what else lies in their tiles."""
    *_, is_causal, near = rest
    pairs, near = 0, cpp.Near(*near)
    for query in range(q[2]):
        tile = query // near.query_tile
        first = max(0, (tile + near.first) * near.key_tile)
        last = min(k[2], (tile + near.last + 1) * near.key_tile)
        if is_causal:
            last = min(last, query + k[2] - q[2] + 1)
        pairs += max(0, last - first)
    return q[0] * q[1] * pairs


_fourier, _fourier_backward = _registered(
    "fourier_kernel_sum",
    lambda x, geometry, _: fourier_forward(x, geometry),
    lambda x, grad, geometry, _: fourier_backward(x, grad, geometry),
    _fourier_flops,
    lambda *sizes: 2 * _fourier_flops(*sizes),  # keys and queries, each there and back
    ("CPU", "CUDA"),
)
_tiles, _tiles_backward = _registered(
    "cpp_kernel_sum",
    cpp.forward,
    cpp.backward,
    lambda q, k, v, *rest: 2 * _pairs(q, k, *rest) * (q[3] + v[3] + 1),
    # scores again, and the gradients of weights, q, k and v
    lambda q, k, v, *rest: 2 * _pairs(q, k, *rest) * (3 * q[3] + 2 * v[3] + 1),
    ("CPU",),
)
