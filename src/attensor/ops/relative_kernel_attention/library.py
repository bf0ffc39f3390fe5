"""The Fourier form and the C++ tiles as operators of PyTorch's library, which a compiler takes as they are.

Compilers have no code for complex numbers and would trace every group of transforms. What they see here is one call.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attensor.ops.relative_kernel_attention.cpp import kernel_sum as cpp
from attensor.ops.relative_kernel_attention.fourier import fourier_backward, fourier_forward
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands

__all__ = ["fourier", "fourier_gradients", "near_gradients", "near_sum"]

_LIBRARY = torch.library.Library("attensor", "FRAGMENT")
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor coefficients"
_LIBRARY.define(f"fourier_kernel_sum({_TENSORS}, SymInt[] queries, SymInt[] keys) -> Tensor")
_LIBRARY.define(
    f"fourier_kernel_sum_backward({_TENSORS}, Tensor grad, SymInt[] queries, SymInt[] keys) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_CPP = f"{_TENSORS}, SymInt[] queries, SymInt[] keys, bool is_causal, int[] near"
_LIBRARY.define(f"cpp_kernel_sum({_CPP}) -> Tensor")
_LIBRARY.define(f"cpp_kernel_sum_backward({_CPP}, Tensor grad) -> (Tensor, Tensor, Tensor, Tensor)")


def fourier(x: Operands, geometry: Geometry) -> Tensor:
    """See `fourier_forward`; contiguous."""
    y: Tensor = torch.ops.attensor.fourier_kernel_sum(*x[:4], geometry.queries, geometry.keys)
    return y


def fourier_gradients(x: Operands, grad: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fourier_backward`; contiguous."""
    found = torch.ops.attensor.fourier_kernel_sum_backward(*x[:4], grad, geometry.queries, geometry.keys)
    grad_q, grad_k, grad_v, grad_coefficients = found
    return grad_q, grad_k, grad_v, grad_coefficients


def near_sum(x: Operands, geometry: Geometry, near: cpp.Near) -> Tensor:
    """See `attensor.ops.relative_kernel_attention.cpp.kernel_sum.forward`."""
    y: Tensor = torch.ops.attensor.cpp_kernel_sum(*x[:4], geometry.queries, geometry.keys, geometry.is_causal, near)
    return y


def near_gradients(
    x: Operands, grad: Tensor, geometry: Geometry, near: cpp.Near
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `attensor.ops.relative_kernel_attention.cpp.kernel_sum.backward`."""
    run = torch.ops.attensor.cpp_kernel_sum_backward
    grad_q, grad_k, grad_v, grad_c = run(*x[:4], geometry.queries, geometry.keys, geometry.is_causal, near, grad)
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


_LIBRARY.impl("cpp_kernel_sum", _near_sum, "CPU")
_LIBRARY.impl("cpp_kernel_sum_backward", _near_gradients, "CPU")
torch.library.register_fake("attensor::cpp_kernel_sum", _near_sum_fake, lib=_LIBRARY)
torch.library.register_fake("attensor::cpp_kernel_sum_backward", _near_gradients_fake, lib=_LIBRARY)
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("fourier_kernel_sum", _forward, _device)
    _LIBRARY.impl("fourier_kernel_sum_backward", _backward, _device)
torch.library.register_fake("attensor::fourier_kernel_sum", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("attensor::fourier_kernel_sum_backward", _fake_backward, lib=_LIBRARY)
