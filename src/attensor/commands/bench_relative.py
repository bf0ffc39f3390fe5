"""`attensor bench relative`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BenchRelative", "Mode"]

Mode = Literal["forward", "training"]


@dataclass(frozen=True)
class BenchRelative:
    """Kernelised attention with relative positions (NPRF) against softmax attention with the same bias, one thread.

    The default run takes some five minutes, of which one compiles flex attention, the first time. Ctrl-C keeps what is
    measured.
    """

    lengths: tuple[int, ...] = (2048, 8192, 16384)
    """Tokens in the sequence."""
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (32, 64), (64, 64))
    """Features and width of a head, in pairs: --sizes 32 32 32 64."""
    modes: tuple[Mode, ...] = ("forward", "training")
    """Out of forward and training (forward + backward)."""
    num_heads: int = 1
    """Heads."""
    rounds: int = 5
    """Timed calls of each contestant; the median counts."""
    budget: float = 1.0
    """Seconds a call may take, one of softmax attention twice as long. Who takes more is left out there and at
    whatever is larger, and the tables say so."""
    quick: bool = False
    """A look in about a minute, two the first time: 2048 and 4096 tokens, forward alone."""
    save: bool = False
    """Also write benchmarks/results/<date>-relative-cpu.md and .json."""

    def run(self) -> int:
        """Measure, print and optionally save."""
        from attensor.bench.hold import hold

        return hold("relative", replace(self, lengths=(2048, 4096), modes=("forward",)) if self.quick else self)
