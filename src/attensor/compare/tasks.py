"""What is learned: the next byte of text, or the class of an image. One interface for both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from attensor.compare.plan import Plan, data_facts
from attensor.data import ImageData, TextData, open_data
from attensor.errors import DataError
from attensor.models.language import Decoder, DecoderConfig
from attensor.models.vision import Encoder, EncoderConfig

__all__ = ["ImageTask", "Task", "TextTask", "decoder", "encoder", "open_task"]

Mixer = Callable[[int], nn.Module]

# held-out bytes scored at the end of a run; each point of the curve reads every fourth window of them
_FINAL_BYTES = 65_536
_CURVE_EVERY = 4
# tokens in one evaluation batch: enough to be fast, few enough for any memory
_TOKENS_AT_ONCE = 4_096


class Task(Protocol):
    """Builds models, and says what they learn and how good they are."""

    tokens_per_step: int

    def model(self, mixer: Mixer, mlp_hidden_size: int) -> nn.Module:
        """A model of the plan's size around `mixer`."""
        ...

    def batch(self, step: int, seed: int) -> Any:
        """Training data of one step: a pure function."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """What is minimised."""
        ...

    def score(self, model: nn.Module) -> float:
        """Held-out score for the curve."""
        ...

    def final(self, model: nn.Module) -> dict[str, float | None]:
        """Held-out scores at the end: at 1x, 2x and 4x the training length; None where there is none."""
        ...


class TextTask:
    """Predict the next byte; scored in held-out bits per byte."""

    def __init__(self, plan: Plan, data: TextData) -> None:
        self._plan, self._data = plan, data
        self._held_out: Tensor | None = None
        self.tokens_per_step = plan.batch_size * plan.length

    def model(self, mixer: Mixer, mlp_hidden_size: int) -> nn.Module:
        """A `Decoder`."""
        return decoder(self._plan, mixer, mlp_hidden_size)

    def batch(self, step: int, seed: int) -> Tensor:
        """Tokens [batch_size, length + 1] on the plan's device."""
        tokens = self._data.batch(step, seed=seed, batch_size=self._plan.batch_size, length=self._plan.length)
        return tokens.to(self._plan.device, non_blocking=True)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats a byte."""
        return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def score(self, model: nn.Module) -> float:
        """Bits per byte on a small fixed part of the held-out text."""
        return self._bits(model, self._windows(1)[::_CURVE_EVERY])

    def final(self, model: nn.Module) -> dict[str, float | None]:
        """Bits per byte of a larger part: the same bytes, predicted in windows of 1, 2 and 4 times the length."""
        return {f"{factor}x": self._bits(model, self._windows(factor)) for factor in (1, 2, 4)}

    def _bits(self, model: nn.Module, windows: Tensor) -> float:
        total = 0.0
        for batch in torch.split(windows, max(1, _TOKENS_AT_ONCE // windows.shape[1])):
            total += float(self.loss(model, batch.to(self._plan.device))) * len(batch)
        return total / len(windows) / math.log(2)

    def _windows(self, factor: int) -> Tensor:
        """[windows, factor * length + 1]: the longest windows cut up, so that every factor reads the same bytes."""
        length = self._plan.length
        if self._held_out is None:
            self._held_out = self._data.held_out(4 * length, limit=max(1, _FINAL_BYTES // (4 * length)))
        # a window starts with the byte that the one before it ended with
        return self._held_out.unfold(1, factor * length + 1, factor * length).flatten(0, 1)


class ImageTask:
    """Name the class; scored in held-out accuracy."""

    def __init__(self, plan: Plan, data: ImageData) -> None:
        self._plan, self._data = plan, data
        self.tokens_per_step = plan.batch_size * (plan.length // plan.patch_size) ** 2

    def model(self, mixer: Mixer, mlp_hidden_size: int) -> nn.Module:
        """An `Encoder`."""
        return encoder(self._plan, mixer, mlp_hidden_size)

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Images [batch_size, channels, height, width] and labels [batch_size] on the plan's device."""
        images, labels = self._data.batch(step, seed=seed, batch_size=self._plan.batch_size)
        return images.to(self._plan.device), labels.to(self._plan.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module) -> float:
        """Share of the held-out images that are named right."""
        right = total = 0
        for images, labels in self._batches():
            right += int((model(images.to(self._plan.device)).argmax(-1).cpu() == labels).sum())
            total += len(labels)
        return right / total

    def final(self, model: nn.Module) -> dict[str, float | None]:
        """Accuracy; images have one size, so nothing at 2x and 4x."""
        return {"1x": self.score(model), "2x": None, "4x": None}

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._data.held_out_batches(4 * self._plan.batch_size)


def open_task(plan: Plan) -> Task:
    """Open the plan's data.

    Raises:
        DataError: the data is no longer what the plan was made for.
    """
    side = plan.length if plan.kind == "images" else None
    data = open_data(plan.source, minimum_bytes=4 * plan.length + 1, image_size=side)
    found = data_facts(data)
    if found != plan.facts:
        changed = [
            f"{k} {plan.facts.get(k)} is now {found.get(k)}" for k in plan.facts if plan.facts[k] != found.get(k)
        ]
        raise DataError(f"{plan.source} has changed since the run was started: {'; '.join(changed)}. Start a new run.")
    return TextTask(plan, data) if isinstance(data, TextData) else ImageTask(plan, data)


def decoder(plan: Plan, mixer: Mixer, mlp_hidden_size: int) -> Decoder:
    """The language model of a plan."""
    config = DecoderConfig(
        vocab_size=256,
        hidden_size=plan.hidden_size,
        num_layers=plan.num_layers,
        num_heads=plan.num_heads,
        mlp_hidden_size=mlp_hidden_size,
    )
    return Decoder(config, mixer)


def encoder(plan: Plan, mixer: Mixer, mlp_hidden_size: int) -> Encoder:
    """The image model of a plan."""
    channels, height, width = plan.facts["image_shape"]
    config = EncoderConfig(
        image_size=(height, width),
        patch_size=plan.patch_size,
        in_channels=channels,
        num_classes=len(plan.facts["classes"]),
        hidden_size=plan.hidden_size,
        num_layers=plan.num_layers,
        num_heads=plan.num_heads,
        mlp_hidden_size=mlp_hidden_size,
    )
    return Encoder(config, mixer)


def build_model(plan: Plan, mixer: Mixer, mlp_hidden_size: int) -> nn.Module:
    """The model of a plan, on whatever device is the default; needs no data."""
    return (decoder if plan.kind == "text" else encoder)(plan, mixer, mlp_hidden_size)


def autocast(plan: Plan) -> torch.autocast:
    """The plan's precision as a context."""
    return torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.dtype == "bfloat16")
