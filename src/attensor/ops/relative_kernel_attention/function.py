"""The kernel sum for autograd, `torch.func` and `torch.compile`, by any method.

Forward and backward are each one `autograd.Function` over plain tensor code. Both see a vmapped dimension as more
heads, so the code below them never meets batched tensors and may work in place. Nothing but the inputs is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from attensor.ops._precision import full_precision
from attensor.ops.relative_kernel_attention.library import fourier, fourier_gradients
from attensor.ops.relative_kernel_attention.native import cpp_backward, cpp_forward
from attensor.ops.relative_kernel_attention.operands import Geometry, Operands
from attensor.ops.relative_kernel_attention.tiles import tiles_backward, tiles_forward

__all__ = ["KernelSum", "Method"]

Method = Literal["tiles", "fft", "cpp"]


def _forward(x: Operands, geometry: Geometry, method: Method) -> Tensor:
    if method == "cpp":
        return cpp_forward(x, geometry)
    return (tiles_forward if method == "tiles" else fourier)(_with_ones(x), geometry).contiguous()


def _backward(x: Operands, grad: Tensor, geometry: Geometry, method: Method) -> tuple[Tensor, ...]:
    if method == "cpp":
        return cpp_backward(x, grad, geometry)
    run = tiles_backward if method == "tiles" else fourier_gradients
    grad_q, grad_k, grad_v, grad_coefficients = run(_with_ones(x), grad, geometry)
    return grad_q, grad_k, grad_v[..., :-1], grad_coefficients


def _with_ones(x: Operands) -> Operands:
    return x._replace(v=torch.cat([x.v, torch.ones_like(x.v[..., :1])], -1))


class KernelSum(torch.autograd.Function):
    """y [B, H, Tq, V + 1] of `Operands` with coefficients [H, *offsets]: the last column is the sum of the weights."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        coefficients: Tensor,
        segment: Tensor | None,
        geometry: Geometry,
        method: Method,
    ) -> Tensor:
        """See `tiles_forward`, `fourier` and `cpp_forward`."""
        with full_precision(q):
            return _forward(Operands(q, k, v, coefficients, segment), geometry, method)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs."""
        *tensors, ctx.geometry, ctx.method = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `tiles_backward`, `fourier_gradients` and `cpp_backward`."""
        found = _Backward.apply(*ctx.saved_tensors, grad, ctx.geometry, ctx.method)  # type: ignore[no-untyped-call]
        return *found, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Tensor, int]:
        """Fold the vmapped dimension into the heads."""
        y = KernelSum.apply(*_fold(info.batch_size, in_dims, arguments))  # type: ignore[no-untyped-call]
        return y.unflatten(1, (info.batch_size, -1)), 1


class _Backward(torch.autograd.Function):
    """Gradients of q, k, v and coefficients.

    A Function of its own, so that vmap over a gradient takes the rule above and not one operation at a time.
    """

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        coefficients: Tensor,
        segment: Tensor | None,
        grad: Tensor,
        geometry: Geometry,
        method: Method,
    ) -> tuple[Tensor, ...]:
        with full_precision(q):
            found = _backward(Operands(q, k, v, coefficients, segment), grad, geometry, method)
        return tuple(t.contiguous() for t in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise NotImplementedError(
            "relative_kernel_attention: the torch and cpp back-ends have first derivatives only; for second ones use "
            'backend="reference".'
        )

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        found = _Backward.apply(*_fold(info.batch_size, in_dims, arguments))  # type: ignore[no-untyped-call]
        dims = (1, 1, 1, 0)
        return tuple(t.unflatten(dim, (info.batch_size, -1)) for t, dim in zip(found, dims)), dims


# where the heads stand in q, k, v, coefficients, segment and, in backward, grad
_HEADS = (1, 1, 1, 0, None, 1)


def _fold(size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The arguments with the vmapped dimension merged into the heads."""
    folded = list(arguments)
    for index, (argument, in_dim) in enumerate(zip(arguments, in_dims)):
        if not isinstance(argument, Tensor):
            continue
        head = _HEADS[index]
        if head is None:
            if in_dim is not None:
                raise NotImplementedError("relative_kernel_attention: no vmap over cu_seqlens; pack all sequences.")
            continue
        if in_dim is None:
            mapped = argument.unsqueeze(head).expand(*argument.shape[:head], size, *argument.shape[head:])
        else:
            mapped = argument.movedim(in_dim, head)
        folded[index] = mapped.flatten(head, head + 1)
    return folded
