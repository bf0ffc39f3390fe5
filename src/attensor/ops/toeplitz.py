r"""Toeplitz product: a matrix whose entries depend on the offset alone, times vectors, in O(n log n).

    y_i = sum_j c_{j - i} x_j              two axes:  y_{a, b} = sum_{e, f} c_{e - a, f - b} x_{e, f}

A Toeplitz matrix is a corner of a circulant one, which the Fourier transform makes diagonal: with L >= n + m - 1,
t[s mod L] = c_{-s} and 0 elsewhere, y = irfft(rfft(t) rfft(x)). Backward, with g = dL/dy, the transposed product is
the adjoint in x, and dc_k = sum_i g_i x_{i + k} is a cross-correlation.

Sizes: m numbers in, n numbers out along an axis (two axes: of a grid).
Source: arXiv:2106.12566, section 3.2; Golub and Van Loan, Matrix Computations, section 4.8.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_float, checked
from attensor.ops._confine import is_finite, visible_product
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import full_precision, working_dtype

__all__ = ["corner", "correlate", "fast_fft_size", "spectrum", "toeplitz", "toeplitz_reference"]


@dataclass(frozen=True)
class Problem:
    """Arguments of `toeplitz`, by the same names."""

    coefficients: Tensor
    x: Tensor
    space_dims: int
    is_causal: bool
    fft_dtype: torch.dtype | None


@checked
def toeplitz(
    coefficients: Tensor,
    x: Tensor,
    *,
    space_dims: int = 1,
    is_causal: bool = False,
    fft_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply vectors by Toeplitz matrices (two axes: by block-Toeplitz matrices of Toeplitz blocks).

    Args:
        coefficients: [..., n + m - 1], c_{j - i} at index j - i + n - 1; two axes: [..., n1 + m1 - 1, n2 + m2 - 1].
            Leading dimensions broadcast against those of x.
        x: [..., m] (two axes: [..., m1, m2]), any floating dtype; contiguous along the last dimension is fastest.
        space_dims: 1 or 2 axes.
        is_causal: leave out the entries after the diagonal, j > i; one axis.
        fft_dtype: precision of the transforms, at least float32; the input's if None. The error is absolute, about
            1e-7 (float32) of the largest output.
        backend: `"reference"` (the matrix in memory) or `"torch"`; the best available if None.
    Returns:
        y [..., n] (two axes: [..., n1, n2]) in x's dtype. Derivatives of any order.
    Raises:
        ShapeError: fewer coefficients than m numbers need, or too few dimensions.
        TypeError: not floating point. ValueError: space_dims not 1 or 2, or causal with two axes.
    Cost: three transforms of length L >= n + m - 1, O(L log L), and L numbers of memory, for each vector.
    Source: arXiv:2106.12566, section 3.2.
    """
    problem = Problem(coefficients, x, space_dims, is_causal, fft_dtype)
    _check(problem)
    return _OPERATOR(problem, backend)


toeplitz_reference = reference_of(toeplitz, "The definition, with the matrix in memory; `fft_dtype` has no effect.")


def _define(problem: Problem) -> Tensor:
    coefficients, x = problem.coefficients, problem.x
    dtype = working_dtype(coefficients, x)
    m, n, _ = _sizes(coefficients, x, problem.space_dims)
    at = [torch.arange(a, device=x.device) - torch.arange(b, device=x.device)[:, None] + b - 1 for a, b in zip(m, n)]
    with full_precision(x):
        if problem.space_dims == 1:
            visible = at[0] < n[0] if problem.is_causal else torch.ones_like(at[0], dtype=torch.bool)
            matrix = coefficients.to(dtype)[..., at[0]].masked_fill(~visible, 0.0)
            return visible_product(matrix, x.to(dtype)[..., None], visible)[..., 0].to(x.dtype)
        matrix = coefficients.to(dtype)[..., at[0][:, None, :, None], at[1][None, :, None, :]]  # [.., n1, n2, m1, m2]
        return torch.einsum("...abef,...ef->...ab", matrix, x.to(dtype)).to(x.dtype)


def fast_fft_size(minimum: int) -> int:
    """The smallest even 2^a 3^b 5^c that is not below `minimum`: transforms of such lengths are fastest."""
    best = 2
    while best < minimum:
        best *= 2
    power_of_5 = 1
    while power_of_5 < best:
        odd = power_of_5
        while odd < best:
            size = 2 * odd
            while size < minimum:
                size *= 2
            best = min(best, size)
            odd *= 3
        power_of_5 *= 5
    return best


def spectrum(coefficients: Tensor, inputs: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Transform of the circulant that holds the Toeplitz matrix.

    Args:
        coefficients: [..., n + m - 1 for each axis].
        inputs: m of each axis.
        sizes: L of each axis, at least n + m - 1.
    Returns:
        complex [..., L1, .., Lr / 2 + 1]: the transform of an input, times this, is that of the output.
    """
    dims = tuple(range(-len(sizes), 0))
    padding = [n for size, have in zip(reversed(sizes), coefficients.shape[::-1]) for n in (0, size - have)]
    circulant = torch.nn.functional.pad(coefficients.flip(dims), padding)
    transformed: Tensor = torch.fft.rfftn(circulant.roll([1 - m for m in inputs], dims), dim=dims)
    return transformed


def correlate(product: Tensor, inputs: Sequence[int], outputs: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Adjoint of `spectrum`: the gradient of the coefficients.

    Args:
        product: complex, sum over vectors of the transform of dL/dy times the conjugate of that of x.
        inputs: m of each axis.
        outputs: n of each axis.
        sizes: L of each axis.
    """
    dims = tuple(range(-len(sizes), 0))
    circulant: Tensor = torch.fft.irfftn(product, s=tuple(sizes), dim=dims).roll([m - 1 for m in inputs], dims)
    return corner(circulant, [n + m - 1 for n, m in zip(outputs, inputs)]).flip(dims)


def corner(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The first numbers of x along its last axes, as many as `sizes` says (a view)."""
    corner_of_space: tuple[Any, ...] = (..., *map(slice, sizes))
    return x[corner_of_space]


class _Toeplitz(torch.autograd.Function):
    """The product by Fourier transform; nothing but the inputs is kept for backward.

    Not by `_kernel.differentiable`, which wants a batch in every tensor: leading dimensions broadcast here.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(coefficients: Tensor, x: Tensor, space_dims: int) -> Tensor:
        m, n, sizes = _sizes(coefficients, x, space_dims)
        dims = tuple(range(-space_dims, 0))
        transformed = torch.fft.rfftn(x, s=sizes, dim=dims) * spectrum(coefficients, m, sizes)
        return corner(torch.fft.irfftn(transformed, s=sizes, dim=dims), n).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        coefficients, x, ctx.space_dims = inputs
        ctx.save_for_backward(coefficients, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, x = ctx.saved_tensors
        m, n, sizes = _sizes(coefficients, x, ctx.space_dims)
        dims = tuple(range(-ctx.space_dims, 0))
        grad_coefficients = grad_x = None
        transformed = torch.fft.rfftn(grad, s=sizes, dim=dims)
        if ctx.needs_input_grad[0]:
            product = _sum_to(transformed * torch.fft.rfftn(x, s=sizes, dim=dims).conj(), coefficients, dims)
            grad_coefficients = correlate(product, m, n, sizes)
        if ctx.needs_input_grad[1]:
            product = _sum_to(transformed * spectrum(coefficients, m, sizes).conj(), x, dims)
            grad_x = corner(torch.fft.irfftn(product, s=sizes, dim=dims), m).contiguous()
        return grad_coefficients, grad_x, None


class _InBothModes(_Toeplitz):
    """With tangents; compilers refuse such a function."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Toeplitz.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, of_coefficients: Tensor | None, of_x: Tensor | None, _: None) -> Tensor:
        coefficients, x = ctx.saved_tensors
        parts = [(of_coefficients, x), (coefficients, of_x)]
        found = [
            _InBothModes.apply(*pair, ctx.space_dims) for pair in parts if pair[0] is not None and pair[1] is not None
        ]
        tangent: Tensor = sum(found[1:], found[0])
        return tangent


def _fourier(problem: Problem) -> Tensor:
    coefficients, x = problem.coefficients, problem.x
    if not (coefficients.numel() and x.numel()):
        return _define(problem)
    dtype = torch.promote_types(working_dtype(coefficients, x), problem.fft_dtype or torch.float32)
    if problem.is_causal:
        offsets = torch.arange(coefficients.shape[-1], device=x.device) - (coefficients.shape[-1] - x.shape[-1])
        coefficients = coefficients.masked_fill(offsets > 0, 0.0)
    function = _Toeplitz if torch.compiler.is_compiling() else _InBothModes
    y: Tensor = function.apply(coefficients.to(dtype), x.to(dtype), problem.space_dims)
    if problem.is_causal and not is_finite(y):
        return _define(problem)  # transforms mix all numbers
    return y.to(x.dtype)


_OPERATOR: Operator[Problem, Tensor] = Operator(
    "toeplitz",
    {
        "reference": Implementation(_define),
        "torch": Implementation(_fourier),
    },
    device_of=lambda problem: problem.x.device,
)


def _sizes(coefficients: Tensor, x: Tensor, space_dims: int) -> tuple[list[int], list[int], list[int]]:
    """m, n and the length L of the transform of each axis."""
    inputs = list(x.shape[-space_dims:])
    offsets = list(coefficients.shape[-space_dims:])
    return inputs, [a - m + 1 for a, m in zip(offsets, inputs)], [fast_fft_size(a) for a in offsets]


def _sum_to(product: Tensor, like: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum the leading dimensions that were broadcast, so that those of `like` remain."""
    return product.sum_to_size(*like.shape[: -len(dims)], *product.shape[-len(dims) :])


def _check(problem: Problem) -> None:
    coefficients, x, space_dims, is_causal, fft_dtype = vars(problem).values()
    if space_dims not in (1, 2) or (is_causal and space_dims == 2):
        raise ValueError(
            f"toeplitz: space_dims must be 1 or 2, and 1 when causal, got space_dims {space_dims} with "
            f"is_causal={is_causal}; there is no order on a grid."
        )
    if fft_dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"toeplitz: fft_dtype must be torch.float32, torch.float64 or None, got {fft_dtype}.")
    for name, tensor in (("coefficients", coefficients), ("x", x)):
        check_float("toeplitz", name, tensor, x, "x")
    have, inputs = list(coefficients.shape[-space_dims:]), list(x.shape[-space_dims:])
    if len(have) < space_dims or len(inputs) < space_dims or any(m < 1 or a < m for a, m in zip(have, inputs)):
        raise ShapeError(
            f"toeplitz: coefficients must end in n + m - 1 offsets for the m numbers of x along each of {space_dims} "
            f"axes, got coefficients {list(coefficients.shape)} for x {list(x.shape)}; square: n = m."
        )
    leading = coefficients.shape[:-space_dims], x.shape[:-space_dims]
    if any(a != b and 1 not in (a, b) for a, b in zip(*(sizes[::-1] for sizes in leading))):
        raise ShapeError(
            f"toeplitz: coefficients must broadcast to x in the leading dimensions, got {list(coefficients.shape)} and "
            f"{list(x.shape)} with space_dims {space_dims}; insert dimensions of 1."
        )
