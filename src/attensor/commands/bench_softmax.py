"""`attensor bench softmax`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BenchSoftmax"]


@dataclass(frozen=True)
class BenchSoftmax:
    """Softmax attention against PyTorch's and the explicit product, also with few queries and heads that share keys."""

    lengths: tuple[int, ...] = (1024, 4096)
    """Keys of a head."""
    queries: tuple[int, ...] = (1, 16, 4096)
    """Queries of a head, the last of the sequence; no more than there are keys."""
    heads: tuple[tuple[int, int], ...] = ((4, 4), (16, 1))
    """Heads of queries and of keys, in pairs: --heads 4 4 16 1."""
    head_dim: int = 64
    """Width of a head."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu (float32) or cuda (bfloat16)."""
    rounds: int = 5
    """Timed calls of each contestant; the median counts."""
    budget: float = 2.0
    """Seconds a call of a peer may take; who takes more is left out there and at whatever is larger."""
    save: bool = False
    """Also write benchmarks/results/<date>-softmax-<device>.md and .json."""

    def run(self) -> int:
        """Measure, print and optionally save."""
        from attensor.bench.hold import hold

        return hold("softmax", self)
