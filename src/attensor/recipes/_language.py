"""Byte-level language models of recipes: trained on the standard library's source, scored on held-out files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from attensor.compare.tasks.text import cut, mean_loss, next_byte_loss
from attensor.data import TextData, open_text
from attensor.models.language import Decoder, DecoderConfig
from attensor.recipes._runs import trained
from attensor.train import TrainConfig

__all__ = ["decoder", "fit", "held_out_loss", "text"]

_HELD_OUT_BYTES = 32_768
_LONGEST_WINDOW = 8_193
# each point of the curve reads every eighth window of the held-out bytes
_CURVE_EVERY = 8


def decoder(
    mixer: Callable[[int], nn.Module],
    *,
    seed: int,
    vocab_size: int = 256,
    num_layers: int = 2,
    mlp_hidden_size: int = 168,
) -> Decoder:
    """A small model, 64 wide, with weights drawn from `seed`.

    Args:
        mixer: layer index -> a layer of 64 channels, two heads where it has any.
        seed: of the weights.
        vocab_size, num_layers, mlp_hidden_size: as in `DecoderConfig`.
    """
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(vocab_size, 64, num_layers, num_heads=2, mlp_hidden_size=mlp_hidden_size), mixer)


def fit(
    model: nn.Module,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    length: int,
    batch_size: int,
    factors: Sequence[int] = (1,),
    loss: Callable[[nn.Module, Tensor], Tensor] = next_byte_loss,
) -> dict[str, Any]:
    """Train a causal model in place to predict the next byte; its held-out loss.

    Args:
        model: tokens [B, T] below 256 to logits [B, T, 256].
        seed: of the order of the data; the caller has drawn the weights.
        steps, learning_rate: of AdamW, with warm-up and cosine to and from the peak.
        length, batch_size: bytes in a training window, and windows.
        factors: the final loss is measured on the same bytes in windows of so many times `length`.
        loss: (model, tokens) -> what is minimised in training.
    Returns:
        `loss`: {factor: nats a byte}; `curve`: [[step, nats a byte], ..] on a part of the held-out bytes.
    Raises:
        Diverged: the loss is no longer finite.
    """
    data = text()
    longest = max(factors) * length
    held_out = data.selection(longest, limit=max(1, _HELD_OUT_BYTES // longest))

    def batch(step: int) -> Tensor:
        return data.batch(step, seed=seed, batch_size=batch_size, length=length)

    def score(model: nn.Module) -> float:
        return mean_loss(model, cut(held_out, length)[::_CURVE_EVERY])

    settings = TrainConfig(steps=steps, learning_rate=learning_rate, evaluations=8)
    curve = trained(model, batch, loss, score, settings)["curve"]
    model.eval()
    return {"loss": {str(f): mean_loss(model, cut(held_out, f * length)) for f in factors}, "curve": curve}


def held_out_loss(model: nn.Module, *, length: int) -> float:
    """Nats a byte of a model on the held-out bytes, in windows of `length`, as `fit` measures them."""
    held_out = text().selection(length, limit=max(1, _HELD_OUT_BYTES // length))
    return mean_loss(model.eval(), cut(held_out, length))


@cache
def text() -> TextData:
    """The standard library's source, of which a tenth is held out."""
    return open_text("stdlib", selection=0.1, test=0.0, minimum_bytes=_LONGEST_WINDOW)
