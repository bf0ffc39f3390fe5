"""Text: what is learned is the next byte."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from attensor.catalogue import Domain
from attensor.compare.counts import FOLDS, stored_counts
from attensor.compare.references import Reference, text_references
from attensor.compare.tasks.task import Final, Mixer, Task, doubled
from attensor.data import TextData
from attensor.data.folds import Folds
from attensor.data.ngram import NGram
from attensor.errors import DataError
from attensor.models.language import CountedDecoder, Decoder, DecoderConfig
from attensor.train.muon import muon

if TYPE_CHECKING:
    from attensor.compare.config import CompareConfig
    from attensor.compare.plan import Plan

__all__ = ["TextTask", "cut", "mean_loss", "next_byte_loss", "window_losses"]

Predict = Callable[[Tensor], Tensor]

# of the test, scored at the end of a run, and of the selection, for each point of the curve
_TEST_BYTES = 65_536
_SELECTION_BYTES = 8_192
# tokens in one evaluation batch: enough to be fast, few enough for any memory
_TOKENS_AT_ONCE = 4_096
# bytes of a stretch, and stretches, that tell noise from text; random bytes take a little more than 8 bits each
_PROBE, _PROBED = 16_384, 16
_BITS_OF_NOISE = 7.7
# of the cost measurement
_SHORTEST = 256


class TextTask(Task):
    """Predict the next byte; scored in bits per byte of what was set apart."""

    kind, domain, units, decodes, budget = "text", Domain.SEQUENCE, "tokens", True, 150.0
    metric, lower_is_better = "bits per byte", True
    facts = (
        *("train_bytes", "selection_bytes", "test_bytes", "train_files", "selection_files", "test_files"),
        *("fingerprint", "notes"),
    )
    final_cost = 3 * _TEST_BYTES / _SELECTION_BYTES
    _data: TextData
    sizes: ClassVar = {"tiny": (128, 8), "small": (512, 32), "base": (1024, 32)}

    def __init__(self, plan: Plan, data: TextData, run: Path | None = None) -> None:
        super().__init__(plan, data, run)
        self._selection: Tensor | None = None
        self.tokens_per_step = plan.batch_size * plan.length

    @classmethod
    def check(cls, data: TextData) -> None:
        """Refuse noise, and what is compressed or encrypted: its bytes cannot be told from noise."""
        count = min(_PROBED, data.train_bytes // _PROBE)
        windows = data.batch(0, seed=0, batch_size=max(1, count), length=min(_PROBE, data.train_bytes) - 1)
        # each by itself: they may overlap
        bits = 8 * sum(len(zlib.compress(bytes(row))) for row in windows.tolist()) / windows.numel()
        if bits > _BITS_OF_NOISE and windows.shape[1] > _PROBE // 2:
            raise DataError(
                f"{data.name!r} looks like noise: zlib makes {bits:.2f} bits of each of its bytes, text takes 2 to 4. "
                "Is it compressed or encrypted? Nothing can be learned of it; unpack it first."
            )

    @classmethod
    def layout(cls, config: CompareConfig, data: TextData, hidden_size: int) -> dict[str, Any]:
        """Sequences of bytes."""
        length, batch_size = cls.sizes[config.size]
        return {
            "length": config.length or length,
            "batch_size": config.batch_size or batch_size,
            "patch_size": 0,
            # this MLP has three matrices, the image model's two: the same number of parameters
            "counts": config.counts,
            "reference_mlp_size": 8 * -(-hidden_size // 3),
        }

    @classmethod
    def build(cls, plan: Plan, mixer: Mixer, mlp_hidden_size: int) -> Decoder | CountedDecoder:
        """A `Decoder`, which with the plan's `counts` corrects an n-gram."""
        config = DecoderConfig(256, plan.hidden_size, plan.num_layers, plan.num_heads, mlp_hidden_size)
        decoder = Decoder(config, mixer)
        return CountedDecoder(decoder) if plan.counts else decoder

    @classmethod
    def spaces(cls, max_length: int) -> list[tuple[int, ...]]:
        """Rows of tokens."""
        return [(length,) for length in doubled(_SHORTEST, max_length)]

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Tokens [batch_size, length + 1], and the fold of each but the first, on the plan's device."""
        sizes = {"seed": seed, "batch_size": self._plan.batch_size, "length": self._plan.length}
        tokens, starts = self._data.batch(step, **sizes), self._data.starts(step, **sizes)
        folds = self._folds.at(starts[:, None] + torch.arange(1, self._plan.length + 1))
        return tokens.to(self._plan.device, non_blocking=True), folds.to(self._plan.device, non_blocking=True)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats a byte; counts are those of the other folds."""
        tokens, folds = batch
        return next_byte_loss(self._predictions(model, folds), tokens)

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Muon: for the same score about two thirds of the steps that AdamW needs, each a tenth longer."""
        return muon(model, learning_rate)

    def score(self, model: nn.Module) -> float:
        """Bits per byte on a small fixed part of the selection."""
        if self._selection is None:
            length = self._plan.length
            self._selection = self._data.selection(length, limit=max(1, _SELECTION_BYTES // length))
        return mean_loss(self._predictions(model), self._selection, self._plan.device) / math.log(2)

    def final(self, model: nn.Module) -> Final:
        """Bits per byte of a part of the test: the same bytes, predicted in windows of 1, 2 and 4 times the length."""
        windows, units = self._test(self._data, self._plan.length)
        predict = self._predictions(model)
        losses = {
            factor: window_losses(predict, cut(windows, factor * self._plan.length), self._plan.device).double()
            / math.log(2)
            for factor in (1, 2, 4)
        }
        of_windows = losses[1].view(len(windows), -1).mean(1)
        of_units = torch.zeros(int(units[-1]) + 1, dtype=torch.float64).index_add(0, units, of_windows)
        scores: dict[str, float | None] = {f"{factor}x": float(loss.mean()) for factor, loss in losses.items()}
        return Final(scores, (of_units / units.bincount()).tolist())

    def prepare(self) -> None:
        """Count the training text."""
        if self._plan.counts:
            stored_counts(self._data, self._run)

    def references(self) -> list[Reference]:
        """n-grams and compressors, for the windows of 1x."""
        length = self._plan.length
        return text_references(self._data, cut(self._test(self._data, length)[0], length))

    def _predictions(self, model: nn.Module, folds: Tensor | None = None) -> Predict:
        """Tokens [B, T] -> logits of the next byte; `folds` [B, T] say which counts are left out for each."""
        if not self._plan.counts:
            return model
        return lambda tokens: model(tokens, log_probabilities=self._counts.log_probabilities(tokens, folds))

    @cached_property
    def _folds(self) -> Folds:
        return self._data.folds(FOLDS)

    @cached_property
    def _counts(self) -> NGram:
        return stored_counts(self._data, self._run).to(self._plan.device)

    @classmethod
    def chance(cls, facts: dict[str, Any]) -> float:
        """All bytes alike."""
        return 8.0

    @classmethod
    def test_units(cls, data: TextData, length: int) -> dict[str, Any]:
        """Files; windows, where there are too few files (see `TextData.test`)."""
        counts = cls._test(data, length)[1].bincount().double()
        return {"kind": "file" if counts.max() > 1 else "window", "weights": (counts / counts.sum()).tolist()}

    @staticmethod
    def _test(data: TextData, length: int) -> tuple[Tensor, Tensor]:
        """The longest windows, to be cut up, so that every factor reads the same bytes; of each its file."""
        return data.test(4 * length, limit=max(1, _TEST_BYTES // (4 * length)))


def next_byte_loss(model: Predict, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of predicting each token [B, T + 1] from those before it, in nats."""
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: Predict, windows: Tensor, device: str = "cpu") -> float:
    """The mean of `next_byte_loss` over [windows, T + 1], a few at a time."""
    parts = torch.split(windows, max(1, _TOKENS_AT_ONCE // windows.shape[1]))
    return sum(float(next_byte_loss(model, part.to(device))) * len(part) for part in parts) / len(windows)


@torch.no_grad()
def window_losses(model: Predict, windows: Tensor, device: str = "cpu") -> Tensor:
    """The mean cross-entropy of each of [windows, T + 1], in nats: float32 [windows] on the CPU, a few at a time."""
    found = []
    for part in torch.split(windows, max(1, _TOKENS_AT_ONCE // windows.shape[1])):
        tokens = part.to(device)
        losses = functional.cross_entropy(model(tokens[:, :-1]).mT, tokens[:, 1:], reduction="none")
        found.append(losses.float().mean(1).cpu())
    return torch.cat(found)


def cut(windows: Tensor, length: int) -> Tensor:
    """[windows, T + 1] to shorter ones, [more, length + 1], over the same bytes."""
    # a window starts with the byte that the one before it ended with
    return windows.unfold(1, length + 1, length).flatten(0, 1)
