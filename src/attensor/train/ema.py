"""Exponential moving averages of weights, as the recipes of image models keep them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["exponential_average"]


def exponential_average(model: nn.Module, decay: float) -> AveragedModel:
    """An average of the weights of `model` for `train(average=...)`.

        mean = d mean + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t)) at update t

    The decay rises at the beginning, so that a short run is not judged by its first weights.

    Args:
        model: whose parameters are averaged; buffers, such as those of batch norms, are taken as they are.
        decay: at least 0 and below 1.
    Raises:
        ValueError: another decay.
    Source: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"exponential_average: decay must be at least 0 and below 1, got {decay}.")

    @torch.no_grad()
    def update(
        averaged: tuple[Tensor, ...] | list[Tensor], current: tuple[Tensor, ...] | list[Tensor], count: Tensor | int
    ) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - now)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=update)
