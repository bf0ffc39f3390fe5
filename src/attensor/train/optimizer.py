"""AdamW with decay on matrices only, and not on what a model excepts."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["adamw", "named_trainable"]


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name; a shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


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
    excepted: set[str] = getattr(model, "no_weight_decay", set)()
    parameters = named_trainable(model)
    decayed = [p for name, p in parameters.items() if p.ndim >= 2 and name not in excepted]
    others = [p for name, p in parameters.items() if p.ndim < 2 or name in excepted]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    # fused: one call instead of a dozen small ones a parameter, and it needs no temporary memory
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
