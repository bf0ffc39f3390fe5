"""Equal parameter counts: the MLP's width makes up for what a mixer has more or less than softmax attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["TOLERANCE", "balanced_mlp_size", "parameter_count"]

TOLERANCE = 0.02


def parameter_count(model: nn.Module) -> int:
    """Parameters that learn, a shared one once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def balanced_mlp_size(
    build: Callable[[int], nn.Module], target: int, *, tolerance: float = TOLERANCE
) -> tuple[int, int]:
    """The MLP width with which `build(width)` comes nearest to `target` parameters.

    Multiples of 8 or 4 are taken when they are near enough, since they multiply faster.

    Args:
        build: MLP width -> model; called on the meta device, and on the CPU if the model cannot be built there.
        target: parameters of the reference model.
        tolerance: largest relative difference.
    Returns:
        width, parameters.
    Raises:
        ValueError: no width comes near enough, since the mixers alone have too many parameters.
    """
    low, high = (_count(build, width) for width in (8, 16))
    per_unit = (high - low) / 8
    ideal = 8 + (target - low) / per_unit
    for multiple in (8, 4, 1):
        width = max(multiple, round(ideal / multiple) * multiple)
        # a stricter bound for the coarse widths: 2 % is the limit, not the aim
        count = _count(build, width)
        if abs(count - target) <= (tolerance if multiple == 1 else tolerance / 4) * target:
            return width, count
    raise ValueError(
        f"parameters cannot be balanced: with an MLP of width {width} the model has {count:,}, the reference "
        f"{target:,}; the mixers have too many. Fewer heads or a smaller state would help."
    )


def _count(build: Callable[[int], nn.Module], width: int) -> int:
    try:
        with torch.device("meta"):
            return parameter_count(build(width))
    except (NotImplementedError, RuntimeError):  # reads values while it is built, which meta tensors do not have
        return parameter_count(build(width))
