"""Forward and backward pass: one sum by any method, its last column the denominator, and rows whose digits it lost.

A sum by transforms is as exact as its largest rows, one by tiles as the range of its numbers: coefficients are those
of a head's largest bias, which a row need not see. On a CPU, where nobody waits for a look, rows far below are computed
anew by themselves (`rows`), and all of them where something is not finite: a product with it is not finite, even where
the weight is 0. Elsewhere such rows lose digits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.relative_kernel_attention.cost import faster_algorithm, transform_flops
from attensor.ops.relative_kernel_attention.fourier import fourier_backward, fourier_forward
from attensor.ops.relative_kernel_attention.near import cpp_backward, cpp_forward
from attensor.ops.relative_kernel_attention.operands import Geometry, Inputs, Operands
from attensor.ops.relative_kernel_attention.rows import add_row_gradients, put_rows
from attensor.ops.relative_kernel_attention.tiles import tiles_backward, tiles_forward

__all__ = ["Choice", "backward", "forward"]

# y [B, H, Tq, V + 1], whose last column is the sum of the weights, and the gradients of q, k, v and the coefficients
_METHODS = {
    "tiles": (tiles_forward, tiles_backward),
    "fft": (fourier_forward, fourier_backward),
    "cpp": (cpp_forward, cpp_backward),
}
# share of a head's largest sum below which transforms of this precision lose more than they may
_LEAST_SHARE = {torch.float32: 3e-2, torch.float64: 1e-8}
# a pair of a row and a key takes as long as this many operations of transforms
_PAIR_COST = 200
_TAME = 30.0  # a head whose biases differ by less loses nothing in tiles


class Choice(NamedTuple):
    """What computes the sums."""

    method: str
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Inputs, geometry: Geometry, algorithm: str, backend: str) -> Choice:
        """The algorithm, or the faster one if it is empty."""
        if x.segment is not None:
            algorithm = "tiles"  # transforms know no segments
        algorithm = algorithm or faster_algorithm(geometry, x.q.shape[-1], x.v.shape[-1] + 1, backend)
        dtype = torch.float64 if algorithm == "fft-float64" else x.q.dtype
        return cls("fft" if algorithm != "tiles" else "cpp" if backend == "cpp" else "tiles", dtype)


def forward(x: Inputs, geometry: Geometry, algorithm: str, backend: str) -> tuple[Tensor, Tensor]:
    """z [B, H, Tq, V] and the totals [B, H, Tq, 1], NaN for rows that were computed by themselves."""
    choice = Choice.of(x, geometry, algorithm, backend)
    operands, _ = _operands(x, choice)
    sums = _METHODS[choice.method][0](operands, geometry)
    if choice.method == "fft":
        # what lies below is rounding, and may be negative
        minimum = 8 * torch.finfo(choice.dtype).eps * _largest(sums[..., -1:], x)
        sums = sums.masked_fill(sums[..., -1:] <= minimum, 0.0)
    total = sums[..., -1:]
    out = (sums[..., :-1] / total.masked_fill(total == 0, 1.0)).to(x.q.dtype).contiguous()
    lost = _lost(sums, x, choice)
    if lost is not None and choice == ("fft", torch.float32) and _are_dear(lost, x, geometry):
        return forward(x, geometry, "fft-float64", backend)
    if lost is not None:
        put_rows(out, x, geometry, lost)
        total = total.masked_fill(lost[..., None], math.nan)
    return out, total.to(x.q.dtype).contiguous()


def backward(
    x: Inputs, out: Tensor, total: Tensor, grad: Tensor, geometry: Geometry, algorithm: str, backend: str
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and the biases from that of z, and what `forward` found."""
    choice = Choice.of(x, geometry, algorithm, backend)
    if (
        choice == ("fft", torch.float32)
        and _may_look(x)
        and ((total <= _LEAST_SHARE[choice.dtype] * _largest(total, x)) & (total != 0)).any()
    ):
        choice = Choice("fft", torch.float64)  # `forward` took it
    lost = total.isnan() if _may_look(x) and not math.isfinite(total.sum()) else None
    by_sums = total != 0 if lost is None else (total != 0) & ~lost
    grads = [torch.zeros_like(t) for t in x[:4]]
    if lost is None or not lost.all():
        operands, largest = _operands(x, choice)
        share = torch.where(by_sums, grad / total, 0.0)
        of_total = torch.where(by_sums, -(share * out).sum(-1, keepdim=True), 0.0)
        of_sums = torch.cat([share, of_total], -1).to(choice.dtype)
        grads = list(_METHODS[choice.method][1](operands, of_sums, geometry))
        grads[3] = grads[3] * operands.coefficients
        if largest is not None:
            grads[0] = grads[0] / largest
    grads = [g.to(t.dtype).contiguous() for g, t in zip(grads, x[:4])]
    if lost is not None:
        add_row_gradients(grads, x, grad, geometry, lost[..., 0])
    return tuple(grads)


def _operands(x: Inputs, choice: Choice) -> tuple[Operands, Tensor | None]:
    """The sum's, and what queries were divided by."""
    # a factor common to all offsets of a head cancels; without this one, large biases would overflow
    largest = x.biases.flatten(1).amax(1).view(-1, *[1] * (x.biases.ndim - 1))
    coefficients = (x.biases - largest.masked_fill(largest == -math.inf, 0.0)).to(choice.dtype).exp()
    if choice.method != "fft":
        return Operands(*x[:3], coefficients, x.segment), None
    # totals of queries are compared
    size = x.q.abs().amax(-1, keepdim=True)
    size = size.masked_fill(size == 0, 1.0)
    q, k, v = (t.to(choice.dtype) for t in (x.q / size, x.k, x.v))
    return Operands(q, k, v, coefficients, None), size


def _lost(sums: Tensor, x: Inputs, choice: Choice) -> Tensor | None:
    """Rows (bool [B, H, Tq]) whose sums say too little; None if there are none or nobody may look."""
    if not _may_look(x):
        return None
    total = sums[..., -1]
    if not (math.isfinite(sums.sum(dtype=torch.float64)) or bool(sums.isfinite().all())):
        return torch.ones_like(total, dtype=torch.bool)
    if choice.method == "fft":
        lost = total <= _LEAST_SHARE[choice.dtype] * _largest(sums[..., -1:], x)[..., 0]
    else:
        least = torch.finfo(choice.dtype).tiny ** (2 / 3)
        if total.amin() > least or _spread(x.biases) < _TAME:
            return None
        lost = total.abs() < least
    lost &= (x.q != 0).any(-1) & (x.biases != -math.inf).flatten(1).any(1)[:, None]
    return lost if lost.any() else None


def _largest(total: Tensor, x: Inputs) -> Tensor:
    """[B, H, 1, 1]: the largest of the totals, or what one key may weigh, whose rounding is there if nobody sees it."""
    most: Tensor = torch.maximum(
        total.nan_to_num(0.0).amax(2, keepdim=True), x.k.sum(-1, keepdim=True).amax(2, keepdim=True)
    )
    return most


def _are_dear(lost: Tensor, x: Inputs, geometry: Geometry) -> bool:
    """Whether some rows by themselves take longer than transforms in float64."""
    keys = x.k.shape[2]
    seen = torch.arange(1 + keys - lost.shape[2], 1 + keys) if geometry.is_causal else torch.full(lost.shape[2:], keys)
    transforms = lost.shape[0] * lost.shape[1] * transform_flops(geometry, x.q.shape[3], x.v.shape[3] + 1)
    return not lost.all() and _PAIR_COST * int((lost * seen).sum()) > transforms


def _spread(biases: Tensor) -> float:
    """The largest difference of finite biases of a head."""
    is_closed = biases == -math.inf
    largest, least = biases.flatten(1).amax(1), biases.masked_fill(is_closed, math.inf).flatten(1).amin(1)
    return float((largest - least).amax())


def _may_look(x: Inputs) -> bool:
    return x.q.device.type == "cpu"
