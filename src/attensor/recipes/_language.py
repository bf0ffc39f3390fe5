"""Byte-level language models of recipes: trained on the standard library's source, scored on held-out files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.data import TextData, open_text
from attensor.train import TrainConfig, train

__all__ = ["fit", "mean_curve"]

_HELD_OUT_BYTES = 32_768
_LONGEST_WINDOW = 8_193
_TOKENS_AT_ONCE = 4_096
# each point of the curve reads every eighth window of the held-out bytes
_CURVE_EVERY = 8


def fit(
    model: nn.Module,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    length: int,
    batch_size: int,
    factors: Sequence[int] = (1,),
    evaluations: int = 8,
) -> dict[str, Any]:
    """Train a causal model in place to predict the next byte; its held-out loss.

    Args:
        model: tokens [B, T] below 256 to logits [B, T, 256].
        seed: of the order of the data; the caller has drawn the weights.
        steps: of AdamW, with warm-up and cosine.
        learning_rate: peak.
        length: bytes in a training window.
        batch_size: windows.
        factors: the final loss is measured on the same bytes in windows of so many times `length`.
        evaluations: points of the curve.
    Returns:
        `loss`: {factor: nats a byte}; `curve`: [[step, nats a byte], ..] on a part of the held-out bytes.
    Raises:
        Diverged: the loss is no longer finite.
    """
    data = _text()
    longest = max(factors) * length
    held_out = data.held_out(longest, limit=max(1, _HELD_OUT_BYTES // longest))

    def batch(step: int) -> Tensor:
        return data.batch(step, seed=seed, batch_size=batch_size, length=length)

    def windows(factor: int) -> Tensor:
        # a window starts with the byte that the one before it ended with
        return held_out.unfold(1, factor * length + 1, factor * length).flatten(0, 1)

    progress = train(
        model,
        batch,
        _loss,
        TrainConfig(steps=steps, learning_rate=learning_rate, evaluations=evaluations),
        evaluate=lambda trained: _mean_loss(trained, windows(1)[::_CURVE_EVERY]),
    )
    model.eval()
    return {
        "loss": {str(factor): _mean_loss(model, windows(factor)) for factor in factors},
        "curve": [[point.step, point.score] for point in progress.curve],
    }


def mean_curve(results: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """The mean over seeds of results with a `curve`, point by point."""
    curves = [result["curve"] for result in results]
    return [(points[0][0], fmean(score for _, score in points)) for points in zip(*curves, strict=True)]


@cache
def _text() -> TextData:
    return open_text("stdlib", minimum_bytes=_LONGEST_WINDOW)


def _loss(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def _mean_loss(model: nn.Module, windows: Tensor) -> float:
    parts = torch.split(windows, max(1, _TOKENS_AT_ONCE // windows.shape[1]))
    return sum(float(_loss(model, part)) * len(part) for part in parts) / len(windows)
