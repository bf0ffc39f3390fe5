"""`attensor bench relative`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from attensor.commands.bench import BenchOptions

__all__ = ["BenchRelative"]


@dataclass(frozen=True)
class BenchRelative(BenchOptions):
    """Kernelised attention with relative positions (NPRF) against softmax attention with the same bias.

    The default run takes some five minutes, of which one compiles flex attention, the first time. Ctrl-C keeps what is
    measured. A quick look is one at 2048 and 4096 tokens, forward alone. Softmax attention may take two budgets a call.
    """

    name = "relative"
    quick_look: ClassVar = {"lengths": (2048, 4096), "modes": ("forward",)}

    lengths: tuple[int, ...] = (2048, 8192, 16384)
    """Tokens in the sequence."""
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (32, 64), (64, 64))
    """Features and width of a head, in pairs: 32x32,32x64."""
    modes: tuple[Literal["forward", "training"], ...] = ("forward", "training")
    """Out of forward and training (forward + backward)."""
    num_heads: int = 1
    """Heads."""
    budget: float = 1.0
