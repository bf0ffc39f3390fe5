r"""The kernel sum by Fourier transforms: O(n log n) operations, O(n) memory.

    y = sum_r phi_q^(r) * T(phi_k^(r) v)        T the Toeplitz product of the coefficients, r = 1 .. M

Backward, with g = dL/dy and T' the transposed product:

    dphi_q^(r) = sum_v g T(phi_k^(r) v)    dphi_k^(r) = sum_v v T'(phi_q^(r) g)    dv = sum_r phi_k^(r) T'(phi_q^(r) g)
    dc = the correlation of phi_q^(r) g with phi_k^(r) v, summed over r and v while still transformed

All M V products would take M times the memory of the input: groups of features, and of heads when they are short, or
of values when they are long, are transformed, used and dropped. Tokens are the last, contiguous axis.
Sizes: N = B H rows, G features in a group, L length of a transform.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.relative_kernel_attention.operands import Geometry, Operands
from attensor.ops.toeplitz import corner, correlate, fast_fft_size, spectrum

__all__ = ["fourier_backward", "fourier_forward"]

_CPU_ELEMENTS = 2**19  # numbers in one group of transforms, about
_GPU_ELEMENTS = 2**26
_LEAST_COLUMNS = 16  # transforms at once, however long: each call plans them anew


class _Transform(NamedTuple):
    """The Toeplitz products of a call: sizes, and the transform of the coefficients for each row."""

    geometry: Geometry
    sizes: tuple[int, ...]
    spectrum: Tensor  # complex [N, L1, .., Lr / 2 + 1]

    @classmethod
    def of(cls, x: Operands, geometry: Geometry) -> _Transform:
        sizes = tuple(fast_fft_size(n) for n in geometry.offsets)
        of_head = spectrum(x.coefficients, geometry.keys, sizes)
        return cls(geometry, sizes, of_head.repeat(x.q.shape[0], *[1] * len(sizes)))

    def groups(self, x: Operands) -> Iterator[tuple[slice, slice, slice]]:
        """Rows, features and values that are transformed at once: all of several rows, down to some values of one."""
        batch, heads, _, features = x.q.shape
        budget = _CPU_ELEMENTS if x.q.device.type == "cpu" else _GPU_ELEMENTS
        columns = max(_LEAST_COLUMNS, budget // math.prod(self.sizes))
        for values in _slices(x.v.shape[-1], columns):
            columns_left = columns // max(1, values.stop - values.start)
            for some in _slices(features, columns_left):
                for rows in _slices(batch * heads, columns_left // max(1, some.stop - some.start)):
                    yield rows, some, values

    def new_buffer(self, x: Operands) -> Tensor:
        """Zeros for the largest group: `outer` writes the corner of each product, the rest stays zero."""
        columns = math.prod(part.stop - part.start for part in next(self.groups(x)))
        return x.q.new_zeros(columns, *self.sizes)

    def outer(self, a: Tensor, b: Tensor, buffer: Tensor) -> Tensor:
        """Transform of a [n, G, *space] times b [n, V, *space], as [n, G, V, *frequencies]."""
        shape = (a.shape[0], a.shape[1], b.shape[1])
        product = buffer[: math.prod(shape)].view(*shape, *self.sizes)
        corner(product, a.shape[2:]).copy_(b.unsqueeze(1)).mul_(a.unsqueeze(2))
        transformed: Tensor = torch.fft.rfftn(product, dim=self._dims)
        return transformed

    def back(self, transformed: Tensor, space: tuple[int, ...]) -> Tensor:
        """The first `space` numbers of the inverse transform."""
        return corner(torch.fft.irfftn(transformed, s=self.sizes, dim=self._dims), space)

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-len(self.sizes), 0))


def fourier_forward(x: Operands, geometry: Geometry) -> Tensor:
    """y [B, H, Tq, V + 1], of v and of ones in the last column."""
    x = x.with_ones()
    transform = _Transform.of(x, geometry)
    q, k, v = _tokens_last(x, geometry)
    out = q.new_zeros(v.shape[0], v.shape[1], *geometry.queries)
    buffer = transform.new_buffer(x) if out.numel() else out
    for rows, features, values in transform.groups(x):
        weighted = transform.outer(k[rows, features], v[rows, values], buffer)
        sums = transform.back(weighted.mul_(transform.spectrum[rows, None, None]), geometry.queries)
        _add_products(out[rows, values], q[rows, features], sums)
    return _tokens_first(out, x.q)


def fourier_backward(x: Operands, grad: Tensor, geometry: Geometry) -> list[Tensor]:
    """Gradients of q, k, v and the coefficients from that of y [B, H, Tq, V + 1]."""
    x = x.with_ones()
    transform = _Transform.of(x, geometry)
    q, k, v = _tokens_last(x, geometry)
    g = grad.transpose(2, 3).reshape(v.shape[0], v.shape[1], *geometry.queries)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    correlation = torch.zeros_like(transform.spectrum)
    key_buffer, query_buffer = (transform.new_buffer(x) if g.numel() else g for _ in range(2))
    for rows, features, values in transform.groups(x):
        factor = transform.spectrum[rows, None, None]
        of_keys = transform.outer(k[rows, features], v[rows, values], key_buffer)
        sums = transform.back(of_keys * factor, geometry.queries)
        grad_q[rows, features] += sums.mul_(g[rows, None, values]).sum(2)
        of_queries = transform.outer(q[rows, features], g[rows, values], query_buffer)
        correlation[rows] += of_keys.conj_physical_().mul_(of_queries).flatten(1, 2).sum(1)
        sums = transform.back(of_queries.mul_(factor.conj()), geometry.keys)
        _add_products(grad_v[rows, values], k[rows, features], sums)
        grad_k[rows, features] += sums.mul_(v[rows, None, values]).sum(2)
    heads = correlation.view(x.q.shape[0], x.q.shape[1], *correlation.shape[1:]).sum(0)
    grads = [_tokens_first(t, like) for t, like in zip((grad_q, grad_k, grad_v[:, :-1]), x[:3])]
    return [*grads, correlate(heads, geometry.keys, geometry.queries, transform.sizes)]


def _slices(count: int, step: int) -> Iterator[slice]:
    """Of `step` places, at least one, up to `count`."""
    step = max(step, 1)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def _tokens_last(x: Operands, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """q [N, M, *queries], k [N, M, *keys], v [N, V, *keys], contiguous."""
    spaces = (geometry.queries, geometry.keys, geometry.keys)
    q, k, v = (
        t.transpose(2, 3).contiguous().view(t.shape[0] * t.shape[1], t.shape[3], *space)
        for t, space in zip(x[:3], spaces)
    )
    return q, k, v


def _tokens_first(x: Tensor, like: Tensor) -> Tensor:
    """[N, D, *space] as [B, H, T, D]."""
    return x.flatten(2).view(*like.shape[:2], x.shape[1], -1).transpose(2, 3)


def _add_products(out: Tensor, factors: Tensor, sums: Tensor) -> None:
    """out [n, V, *space] += sum over G of factors [n, G, *space] times sums [n, G, V, *space]."""
    for feature in range(factors.shape[1]):
        out.addcmul_(factors[:, feature, None], sums[:, feature])
