"""`attensor bench vision`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attensor.commands.bench import BenchOptions

__all__ = ["BenchVision"]


@dataclass(frozen=True)
class BenchVision(BenchOptions):
    """Images a second and memory of whole image models against timm's with the same weights.

    Inference is a forward pass, a training step a forward and a backward pass to all parameters. A quick look is one at
    single images, with DaViT-T and HaloNet-26-T.
    """

    name = "vision"
    quick_look: ClassVar = {"models": ("davit_tiny", "halonet26t"), "batch_size": 1}

    models: tuple[str, ...] = ("usual",)
    """Names as `attensor list` knows them, or usual: one of each family, with 12 to 31 million parameters."""
    batch_size: int = 4
    """Images in a call."""
    image_size: int | None = None
    """Side in pixels of the images, for which the models are built; by default that of each model's preset."""
    rounds: int = 3
    budget: float = 60.0
