"""`attensor bench linear`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BenchLinear"]

Variant = Literal["none", "constant", "scalar", "channel", "denominator", "layer"]
Mode = Literal["forward", "training", "decode"]


@dataclass(frozen=True)
class BenchLinear:
    """Speed and memory of linear attention against every peer that is installed, by length and while decoding.

    The default run takes some minutes on one idle thread. Ctrl-C keeps what is measured.
    """

    lengths: tuple[int, ...] = (512, 2048, 8192, 65536)
    """Tokens in a sequence."""
    tokens: tuple[int, ...] = (4096, 65536)
    """Tokens in a call, shared out to as many sequences as they make; each with all the lengths that divide it."""
    variants: tuple[Variant, ...] = ("none", "constant", "scalar", "channel", "denominator", "layer")
    """Kinds of decay, and with a denominator, and a whole layer."""
    modes: tuple[Mode, ...] = ("forward", "training", "decode")
    """Out of forward, training (forward + backward) and decode."""
    peers: tuple[str, ...] = ("all",)
    """Names of contestants as the first table gives them; ours is always among them."""
    num_heads: int = 2
    """Heads."""
    head_dim: int = 64
    """Key and value channels of a head (decoding is measured at the sizes of GLA 340M)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu (float32) or cuda (bfloat16)."""
    threads: int = 1
    """Threads for PyTorch on a CPU."""
    rounds: int = 5
    """Timed calls of each contestant; the median counts."""
    budget: float = 2.0
    """Seconds a call of a peer may take; who takes more is left out there and at whatever is larger."""
    quick: bool = False
    """A look in under two minutes: 4096 tokens a call in sequences of 512 and 2048, two layers of decoding."""
    save: bool = False
    """Also write benchmarks/results/<date>-linear-<device>.md and .json."""

    def run(self) -> int:
        """Measure, print and optionally save."""
        from attensor.bench.hold import hold

        return hold("linear", replace(self, lengths=(512, 2048), tokens=(4096,)) if self.quick else self)
