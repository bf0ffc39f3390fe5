"""The Fourier form and the C++ tiles as operators of PyTorch's library, which a compiler takes as they are.

Compilers have no code for complex numbers and would trace every group of transforms. What they see here is one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from attensor.ops._kernel import register
from attensor.ops.relative_kernel_attention.cost import transform_flops
from attensor.ops.relative_kernel_attention.cpp import kernel_sum as cpp
from attensor.ops.relative_kernel_attention.fourier import fourier_backward, fourier_forward
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands

__all__ = ["fourier", "fourier_gradients", "near_gradients", "near_sum"]


def fourier(x: Operands, geometry: Geometry) -> Tensor:
    """See `fourier_forward`; contiguous."""
    y: Tensor = _fourier(*x[:4], geometry.queries, geometry.keys)
    return y


def fourier_gradients(x: Operands, grad: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fourier_backward`; contiguous."""
    found = _fourier_backward(*x[:4], grad, geometry.queries, geometry.keys)
    grad_q, grad_k, grad_v, grad_coefficients = found
    return grad_q, grad_k, grad_v, grad_coefficients


def near_sum(x: Operands, geometry: Geometry, near: cpp.Near) -> Tensor:
    """See `attensor.ops.relative_kernel_attention.cpp.kernel_sum.forward`."""
    y: Tensor = _near(*x[:4], geometry.queries, geometry.keys, geometry.is_causal, tuple(near))
    return y


def near_gradients(
    x: Operands, grad: Tensor, geometry: Geometry, near: cpp.Near
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `attensor.ops.relative_kernel_attention.cpp.kernel_sum.backward`."""
    sizes = geometry.queries, geometry.keys, geometry.is_causal
    grad_q, grad_k, grad_v, grad_c = _near_backward(*x[:4], *sizes, tuple(near), grad)
    return grad_q, grad_k, grad_v, grad_c


def _forward(
    q: Tensor, k: Tensor, v: Tensor, coefficients: Tensor, queries: Sequence[int], keys: Sequence[int]
) -> Tensor:
    geometry = Geometry(tuple(queries), tuple(keys), is_causal=False)
    return fourier_forward(Operands(q, k, v, coefficients, None), geometry).contiguous()


def _backward(
    q: Tensor, k: Tensor, v: Tensor, coefficients: Tensor, grad: Tensor, queries: Sequence[int], keys: Sequence[int]
) -> tuple[Tensor, ...]:
    geometry = Geometry(tuple(queries), tuple(keys), is_causal=False)
    return tuple(t.contiguous() for t in fourier_backward(Operands(q, k, v, coefficients, None), grad, geometry))


def _fake_forward(
    q: Tensor, k: Tensor, v: Tensor, coefficients: Tensor, queries: Sequence[int], keys: Sequence[int]
) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


def _fake_backward(
    q: Tensor, k: Tensor, v: Tensor, coefficients: Tensor, grad: Tensor, queries: Sequence[int], keys: Sequence[int]
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (q, k, v, coefficients))


# the schemas above name and type what these take


def _near_sum(*arguments: Any) -> Tensor:
    q, k, v, c, queries, keys, is_causal, near = arguments
    return cpp.forward(Operands(q, k, v, c, None), Geometry(tuple(queries), tuple(keys), is_causal), cpp.Near(*near))


def _near_sum_fake(*arguments: Any) -> Tensor:
    q, _, v, *_ = arguments
    found: Tensor = q.new_empty(*q.shape[:3], v.shape[3] + 1)
    return found


def _near_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    q, k, v, c, queries, keys, is_causal, near, grad = arguments
    geometry = Geometry(tuple(queries), tuple(keys), is_causal)
    return cpp.backward(Operands(q, k, v, c, None), grad, geometry, cpp.Near(*near))


def _near_gradients_fake(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in arguments[:4])


def _fourier_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *rest: Any) -> int:
    """Of the transforms."""
    *_, queries, keys = rest
    return round(q[0] * q[1] * transform_flops(Geometry(tuple(queries), tuple(keys), False), q[3], v[3]))


def _fourier_backward_flops(*arguments: Any) -> int:
    """Keys and queries, each there and back."""
    return 2 * _fourier_flops(*arguments)


def _near_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *rest: Any) -> int:
    """Pairs that are seen, without what else lies in their tiles."""
    return 2 * q[0] * q[1] * _pairs(q[2], k[2], rest[3], cpp.Near(*rest[4])) * (q[3] + v[3] + 1)


def _near_backward_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *rest: Any) -> int:
    """Scores again, and the gradients of weights, q, k and v."""
    return 2 * q[0] * q[1] * _pairs(q[2], k[2], rest[3], cpp.Near(*rest[4])) * (3 * q[3] + 2 * v[3] + 1)


def _pairs(queries: int, keys: int, is_causal: bool, near: cpp.Near) -> int:
    pairs = 0
    for query in range(queries):
        tile = query // near.query_tile
        first = max(0, (tile + near.first) * near.key_tile)
        last = min(keys, (tile + near.last + 1) * near.key_tile)
        if is_causal:
            last = min(last, query + keys - queries + 1)
        pairs += max(0, last - first)
    return pairs


_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor coefficients"
_GRADIENTS = "(Tensor, Tensor, Tensor, Tensor)"
_CPP = f"{_TENSORS}, SymInt[] queries, SymInt[] keys, bool is_causal, int[] near"
_fourier = register(
    f"fourier_kernel_sum({_TENSORS}, SymInt[] queries, SymInt[] keys) -> Tensor",
    _forward,
    _fake_forward,
    flops=_fourier_flops,
    devices=("CPU", "CUDA"),
)
_fourier_backward = register(
    f"fourier_kernel_sum_backward({_TENSORS}, Tensor grad, SymInt[] queries, SymInt[] keys) -> {_GRADIENTS}",
    _backward,
    _fake_backward,
    flops=_fourier_backward_flops,
    devices=("CPU", "CUDA"),
)
_near = register(f"cpp_kernel_sum({_CPP}) -> Tensor", _near_sum, _near_sum_fake, flops=_near_flops)
_near_backward = register(
    f"cpp_kernel_sum_backward({_CPP}, Tensor grad) -> {_GRADIENTS}",
    _near_gradients,
    _near_gradients_fake,
    flops=_near_backward_flops,
)
