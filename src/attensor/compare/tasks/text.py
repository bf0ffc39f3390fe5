"""Text: what is learned is the next byte."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from attensor.catalogue import Domain
from attensor.compare.tasks.task import Mixer, Task, doubled
from attensor.data import TextData
from attensor.models.language import Decoder, DecoderConfig

if TYPE_CHECKING:
    from attensor.compare.config import CompareConfig
    from attensor.compare.plan import Plan

__all__ = ["TextTask", "cut", "mean_loss", "next_byte_loss"]

# held-out bytes scored at the end of a run; each point of the curve reads every fourth window of them
_FINAL_BYTES = 65_536
_CURVE_EVERY = 4
# tokens in one evaluation batch: enough to be fast, few enough for any memory
_TOKENS_AT_ONCE = 4_096
# of the cost measurement
_SHORTEST = 256


class TextTask(Task):
    """Predict the next byte; scored in held-out bits per byte."""

    kind, domain, units, decodes, budget = "text", Domain.SEQUENCE, "tokens", True, 120.0
    metric, lower_is_better = "bits per byte", True
    facts = ("train_bytes", "held_out_bytes", "train_files", "held_out_files", "fingerprint", "notes")
    _data: TextData
    sizes: ClassVar = {"tiny": (128, 8), "small": (512, 32), "base": (1024, 32)}

    def __init__(self, plan: Plan, data: TextData) -> None:
        super().__init__(plan, data)
        self._held_out: Tensor | None = None
        self.tokens_per_step = plan.batch_size * plan.length

    @classmethod
    def layout(cls, config: CompareConfig, data: TextData, hidden_size: int) -> dict[str, int]:
        """Sequences of bytes."""
        length, batch_size = cls.sizes[config.size]
        return {
            "length": config.length or length,
            "batch_size": config.batch_size or batch_size,
            "patch_size": 0,
            # this MLP has three matrices, the image model's two: the same number of parameters
            "reference_mlp_size": 8 * -(-hidden_size // 3),
        }

    @classmethod
    def build(cls, plan: Plan, mixer: Mixer, mlp_hidden_size: int) -> Decoder:
        """A `Decoder`."""
        return Decoder(DecoderConfig(256, plan.hidden_size, plan.num_layers, plan.num_heads, mlp_hidden_size), mixer)

    @classmethod
    def spaces(cls, max_length: int) -> list[tuple[int, ...]]:
        """Rows of tokens."""
        return [(length,) for length in doubled(_SHORTEST, max_length)]

    def batch(self, step: int, seed: int) -> Tensor:
        """Tokens [batch_size, length + 1] on the plan's device."""
        tokens = self._data.batch(step, seed=seed, batch_size=self._plan.batch_size, length=self._plan.length)
        return tokens.to(self._plan.device, non_blocking=True)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats a byte."""
        return next_byte_loss(model, batch)

    def score(self, model: nn.Module) -> float:
        """Bits per byte on a small fixed part of the held-out text."""
        return self._bits(model, self._windows(1)[::_CURVE_EVERY])

    def final(self, model: nn.Module) -> dict[str, float | None]:
        """Bits per byte of a larger part: the same bytes, predicted in windows of 1, 2 and 4 times the length."""
        return {f"{factor}x": self._bits(model, self._windows(factor)) for factor in (1, 2, 4)}

    def _bits(self, model: nn.Module, windows: Tensor) -> float:
        return mean_loss(model, windows, self._plan.device) / math.log(2)

    def _windows(self, factor: int) -> Tensor:
        """[windows, factor * length + 1]: the longest windows cut up, so that every factor reads the same bytes."""
        length = self._plan.length
        if self._held_out is None:
            self._held_out = self._data.held_out(4 * length, limit=max(1, _FINAL_BYTES // (4 * length)))
        return cut(self._held_out, factor * length)


def next_byte_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of predicting each token [B, T + 1] from those before it, in nats."""
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: nn.Module, windows: Tensor, device: str = "cpu") -> float:
    """The mean of `next_byte_loss` over [windows, T + 1], a few at a time."""
    parts = torch.split(windows, max(1, _TOKENS_AT_ONCE // windows.shape[1]))
    return sum(float(next_byte_loss(model, part.to(device))) * len(part) for part in parts) / len(windows)


def cut(windows: Tensor, length: int) -> Tensor:
    """[windows, T + 1] to shorter ones, [more, length + 1], over the same bytes."""
    # a window starts with the byte that the one before it ended with
    return windows.unfold(1, length + 1, length).flatten(0, 1)
