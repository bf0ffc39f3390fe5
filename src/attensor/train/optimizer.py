"""AdamW with decay on matrices only, and not on what a model excepts; the learning rate over a run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from attensor.nn._shapes import check_range
from attensor.ops._checks import checked

__all__ = ["adamw", "learning_rate_factor", "named_trainable", "parameter_groups"]


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name; a shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@checked
def adamw(
    model: nn.Module, learning_rate: float, *, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over `model`: norms, biases, gains and other vectors are not decayed.

    Args:
        model: its trainable parameters of two or more axes are decayed, but those that `model.no_weight_decay()`, if
            it has that, names.
        learning_rate: peak rate; the schedule multiplies it.
        weight_decay: per step, times the learning rate.
        betas: averages of the gradient and of its square.
    """
    groups = parameter_groups(model, learning_rate, weight_decay=weight_decay)
    # fused: one call instead of a dozen small ones a parameter, and it needs no temporary memory
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


@checked
def parameter_groups(
    model: nn.Module, learning_rate: float, *, weight_decay: float, rate_shares: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in groups of one rate and one decay, matrices before vectors.

    Args:
        model: norms, biases, gains and other vectors are not decayed, nor what `model.no_weight_decay()` names.
        learning_rate: of all, or what `rate_shares` multiply.
        weight_decay: of matrices and larger.
        rate_shares: share of the rate that a parameter has, by its name; 1 for others.
    """
    excepted: set[str] = getattr(model, "no_weight_decay", set)()
    shares = rate_shares or {}
    found: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for share in sorted({1.0, *shares.values()}):
        found[share, True], found[share, False] = [], []
    for name, parameter in named_trainable(model).items():
        found[shares.get(name, 1.0), parameter.ndim >= 2 and name not in excepted].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if is_decayed else 0.0, "lr": learning_rate * share}
        for (share, is_decayed), parameters in found.items()
    ]


@checked
def learning_rate_factor(step: int, steps: int, *, warmup_steps: int, final_factor: float = 0.1) -> float:
    """What the peak learning rate is multiplied by at `step`.

    It rises linearly to 1 at `warmup_steps - 1`, then falls along a half cosine to `final_factor` at the last step.

    Args:
        step: 0 for the first step.
        steps: steps of the whole run.
        warmup_steps: steps of the rise; 0 starts at the peak.
        final_factor: value at step `steps - 1`.
    Raises:
        ValueError: a number below 0.
    Source: cosine without restarts, arXiv:1608.03983, equation (5).
    """
    check_range("learning_rate_factor", 0, step=step, steps=steps, warmup_steps=warmup_steps, final_factor=final_factor)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    fraction = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
