"""Gradients along a random direction against central differences of the formulas, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor

from tests.fuzz.calls import tensors_in
from tests.fuzz.definitions import DEFINITIONS

__all__ = ["gradient_error"]

_STEP = 1e-5


def gradient_error(
    operator: str, function: Callable[..., Any], arguments: dict[str, Any], arrays: dict[str, Any]
) -> float:
    """Of the derivative of an uneven sum of all results, relative to the larger of derivative and sum.

    Args:
        operator: whose formula.
        function: what is differentiated.
        arguments: its arguments, float64.
        arrays: the same for the formula.
    """
    generator = torch.Generator().manual_seed(1)
    moved = {name: x for name, x in arguments.items() if isinstance(x, Tensor) and x.is_floating_point()}
    directions = {
        # where a bias or a decay is -inf it stays so
        name: torch.randn(x.shape, generator=generator, dtype=torch.float64).masked_fill(~x.isfinite(), 0.0)
        for name, x in moved.items()
    }

    def formula(step: float) -> float:
        shifted = {name: arrays[name] + step * direction.numpy() for name, direction in directions.items()}
        return sum(float(_weights(y.size) @ _finite(y)) for y in DEFINITIONS[operator]({**arrays, **shifted}))

    leaves = {name: x.detach().requires_grad_() for name, x in moved.items()}
    found = tensors_in(function(**{**arguments, **leaves}))
    loss = sum(
        (torch.from_numpy(_weights(y.numel())) * y.masked_fill(~y.isfinite(), 0.0).flatten()).sum() for y in found
    )
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    derivative = sum(float((slope * directions[name]).sum()) for name, slope in zip(leaves, slopes))
    expected = (formula(_STEP) - formula(-_STEP)) / (2 * _STEP)
    error = abs(derivative - expected) / max(abs(expected), abs(formula(0.0)), 1.0)
    return error if error == error else float("inf")


def _weights(size: int) -> Any:
    """Uneven: a plain sum hides what is exchanged."""
    return numpy.linspace(-1.0, 1.0, size) + 0.3


def _finite(y: Any) -> Any:
    return numpy.where(numpy.isfinite(y), y, 0.0).reshape(-1)
