"""`attensor bench latent`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from attensor.commands.bench import BenchOptions

__all__ = ["BenchLatent"]

Model = Literal["deepseek-v2-lite-attention", "deepseek-v2-attention", "deepseek-v3-attention", "kimi-k2-attention"]


@dataclass(frozen=True)
class BenchLatent(BenchOptions):
    """One token through one layer of latent attention after many: from latents as they are kept, against making all
    keys and values of them again, keeping those instead, and transformers' layer with its cache.
    """

    name = "latent"
    quick_look: ClassVar = {"positions": (2048,)}

    positions: tuple[int, ...] = (8192, 32768)
    """Tokens before the one that is timed."""
    model: Model = "deepseek-v2-lite-attention"
    """Whose sizes the layer has."""
