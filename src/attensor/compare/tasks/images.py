"""Images: what is learned is their class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from attensor.catalogue import Domain
from attensor.compare.references import Reference, image_references
from attensor.compare.tasks.task import Final, Mixer, Task, doubled
from attensor.data import ImageData
from attensor.models.vision import Encoder, EncoderConfig

if TYPE_CHECKING:
    from attensor.compare.config import CompareConfig
    from attensor.compare.plan import Plan

__all__ = ["ImageTask"]

# of the cost measurement
_SMALLEST_SIDE = 8
# parts of the test whose scores are kept
_MOST_UNITS = 400


class ImageTask(Task):
    """Name the class; scored in accuracy on images that were set apart."""

    kind, domain, units, decodes, budget = "images", Domain.GRID, "cells", False, 60.0
    metric, lower_is_better = "accuracy", False
    facts = (
        *("classes", "train_images", "selection_images", "test_images", "image_shape"),
        *("fingerprint", "notes"),
    )
    final_cost = 2.0
    _data: ImageData
    sizes: ClassVar = {"tiny": (32, 16), "small": (64, 64), "base": (128, 64)}

    def __init__(self, plan: Plan, data: ImageData, run: Path | None = None) -> None:
        super().__init__(plan, data, run)
        self.tokens_per_step = plan.batch_size * (plan.length // plan.patch_size) ** 2

    @classmethod
    def check(cls, data: ImageData) -> None:
        """Nothing to refuse: what cannot be read as an image has been refused when it was opened."""

    @classmethod
    def layout(cls, config: CompareConfig, data: ImageData, hidden_size: int) -> dict[str, Any]:
        """Square images in square patches."""
        side = data.image_shape[1]
        fewest = 8 if config.size == "tiny" else 16
        return {
            "length": side,
            "batch_size": config.batch_size or cls.sizes[config.size][1],
            # the largest that divides the image and leaves so many patches a side
            "patch_size": max((p for p in range(1, side + 1) if side % p == 0 and side // p >= fewest), default=1),
            "counts": False,
            "reference_mlp_size": 4 * hidden_size,
        }

    @classmethod
    def build(cls, plan: Plan, mixer: Mixer, mlp_hidden_size: int) -> Encoder:
        """An `Encoder`."""
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

    @classmethod
    def spaces(cls, max_length: int) -> list[tuple[int, ...]]:
        """Square grids of cells."""
        return [(side, side) for side in doubled(_SMALLEST_SIDE, int(max_length**0.5))]

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Images [batch_size, channels, height, width] and labels [batch_size] on the plan's device."""
        images, labels = self._data.batch(step, seed=seed, batch_size=self._plan.batch_size)
        return images.to(self._plan.device), labels.to(self._plan.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module) -> float:
        """Share of the images of the selection that are named right."""
        return self._right(model, self._data.selection_batches(4 * self._plan.batch_size)).mean().item()

    def references(self) -> list[Reference]:
        """The most common class, the nearest image, logistic regression."""
        return image_references(self._data)

    def final(self, model: nn.Module) -> Final:
        """Accuracy on the test; images have one size, so nothing at 2x and 4x."""
        right = self._right(model, self._data.test_batches(4 * self._plan.batch_size))
        units = [part.mean().item() for part in right.tensor_split(min(_MOST_UNITS, len(right)))]
        return Final({"1x": right.mean().item(), "2x": None, "4x": None}, units)

    @classmethod
    def chance(cls, facts: dict[str, Any]) -> float:
        """One class as often as any other."""
        return 1 / len(facts["classes"])

    @classmethod
    def test_units(cls, data: ImageData, length: int) -> dict[str, Any]:
        """Images; more than 400 as so many groups."""
        count = data.test_images
        parts = torch.arange(count).tensor_split(min(_MOST_UNITS, count))
        return {"kind": "image", "weights": [len(part) / count for part in parts]}

    def _right(self, model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """1 for each image that is named right, else 0: float64 [images]."""
        device = self._plan.device
        return torch.cat([(model(images.to(device)).argmax(-1).cpu() == labels).double() for images, labels in batches])
