"""A running average of weights that forgets its beginning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["polynomial_average"]


def polynomial_average(model: nn.Module, *, decay: float = 8.0) -> AveragedModel:
    """`mean_t = mean_{t-1} + (decay + 1) / (t + decay) (weights_t - mean_{t-1})`.

    Source: Shamir and Zhang, arXiv:1212.1824, section 4.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        torch._foreach_lerp_(averaged, current, (decay + 1) / (int(count) + 1 + decay))

    return AveragedModel(model, multi_avg_fn=update)
