r"""The power-law operator: from a tensor of statistics A, the matrix G that stands between queries and keys.

    X = W A + b,   A_LM = X^2 sigmoid(X) + 1e-9,   A_P = A_LM ^ p  (entry by entry),   G = a A_P + c

W and a multiply from the left: they mix rows. Entries of A_LM are positive, so that any exponent is defined; a small
entry under a negative exponent makes a large one of A_P, and its rounding counts as much.
Sizes: H heads, D head width.
Source: arXiv:2502.13502, section 2, its "deductive outputs"; arXiv:2410.16703.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_float, checked, is_autocast
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import full_precision, working_dtype

__all__ = ["power_law_operator", "power_law_operator_reference"]

_NAME = "power_law_operator"
_LEAST = 1e-9  # of an entry of A_LM


@dataclass(frozen=True)
class Problem:
    """Arguments of `power_law_operator`, by the same names."""

    a: Tensor
    weight: Tensor
    bias: Tensor
    exponent: Tensor
    mix: Tensor
    mix_bias: Tensor


@checked
def power_law_operator(
    a: Tensor,
    weight: Tensor,
    bias: Tensor,
    exponent: Tensor,
    mix: Tensor,
    mix_bias: Tensor,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors that follow from A: 4 D^3 operations a head, whatever the number of tokens.

    Args:
        a: [..., H, D, D], any floating dtype.
        weight: [H, D, D], W; multiplies A from the left.
        bias: [H, D, D], b.
        exponent: [H, D, D], p, of each entry.
        mix: [H, D, D], multiplies A_P from the left.
        mix_bias: [H, D, D], c.
        backend: `"reference"` or `"torch"`; the best available if None.
    Returns:
        A_LM in a's dtype, A_P and G in at least float32: each [..., H, D, D]. Everything is computed in at least
        float32, as rounding grows by the power. Derivatives of any order.
    Raises:
        ShapeError: sizes disagree.
        TypeError: dtypes differ or are not floating. ValueError: devices differ.
    Source: arXiv:2502.13502, section 2.
    """
    _check(a, weight=weight, bias=bias, exponent=exponent, mix=mix, mix_bias=mix_bias)
    with full_precision(a):
        metric, potential, operator = _OPERATOR(Problem(a, weight, bias, exponent, mix, mix_bias), backend)
    return metric.to(a.dtype), potential, operator


power_law_operator_reference = reference_of(power_law_operator, "Sums over rows and a power by its logarithm.")


def _check(a: Tensor, **parameters: Tensor) -> None:
    check_float(_NAME, "a", a, a, "a")
    if a.ndim < 3 or a.shape[-1] != a.shape[-2]:
        raise ShapeError(f"{_NAME}: a must be [..., H, D, D], got {list(a.shape)}; it is square for each head.")
    for label, parameter in parameters.items():
        check_float(_NAME, label, parameter, a, "a")
        if parameter.dtype != a.dtype and not is_autocast(a.device.type):
            raise TypeError(
                f"{_NAME}: all tensors must share one floating dtype, got {label} {parameter.dtype} beside a "
                f"{a.dtype}; use .to(a.dtype)."
            )
        if parameter.shape != a.shape[-3:]:
            raise ShapeError(
                f"{_NAME}: {label} must be [H, D, D] = {list(a.shape[-3:])} beside a {list(a.shape)}, got "
                f"{list(parameter.shape)}."
            )


def _wide(x: Problem) -> tuple[Tensor, ...]:
    tensors = (x.a, x.weight, x.bias, x.exponent, x.mix, x.mix_bias)
    dtype = working_dtype(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _define(x: Problem) -> tuple[Tensor, Tensor, Tensor]:
    a, weight, bias, exponent, mix, mix_bias = _wide(x)
    summed = torch.einsum("hij,...hjk->...hik", weight, a) + bias
    metric = summed * summed / (1 + torch.exp(-summed)) + _LEAST
    potential = torch.exp(exponent * torch.log(metric))
    return metric, potential, torch.einsum("hij,...hjk->...hik", mix, potential) + mix_bias


def _torch(x: Problem) -> tuple[Tensor, Tensor, Tensor]:
    a, weight, bias, exponent, mix, mix_bias = _wide(x)
    summed = torch.matmul(weight, a) + bias
    metric = summed * torch.nn.functional.silu(summed) + _LEAST
    potential = metric**exponent
    return metric, potential, torch.matmul(mix, potential) + mix_bias


_OPERATOR: Operator[Problem, tuple[Tensor, Tensor, Tensor]] = Operator(
    _NAME,
    {"reference": Implementation(_define), "torch": Implementation(_torch)},
    device_of=lambda problem: problem.a.device,
)
