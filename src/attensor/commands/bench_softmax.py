"""`attensor bench softmax`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attensor.commands.bench import BenchOptions

__all__ = ["BenchSoftmax"]


@dataclass(frozen=True)
class BenchSoftmax(BenchOptions):
    """Softmax attention against PyTorch's and the explicit product, also with few queries and heads that share keys."""

    name = "softmax"
    quick_look: ClassVar = {"lengths": (1024,)}

    lengths: tuple[int, ...] = (1024, 4096)
    """Keys of a head."""
    queries: tuple[int, ...] = (1, 16, 4096)
    """Queries of a head, the last of the sequence; no more than there are keys."""
    heads: tuple[tuple[int, int], ...] = ((4, 4), (16, 1))
    """Heads of queries and of keys, in pairs: 4x4,16x1."""
    head_dim: int = 64
    """Width of a head."""
