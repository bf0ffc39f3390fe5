"""`attensor bench linear`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from attensor.commands.bench import BenchOptions

__all__ = ["BenchLinear"]

Variant = Literal["none", "constant", "scalar", "channel", "denominator", "layer"]
Mode = Literal["forward", "training", "decode"]


@dataclass(frozen=True)
class BenchLinear(BenchOptions):
    """Speed and memory of linear attention against every peer that is installed, by length and while decoding.

    The default run takes some minutes on one idle thread. Ctrl-C keeps what is measured. A quick look is one at 4096
    tokens a call in sequences of 512 and 2048, and two layers of decoding.
    """

    name = "linear"
    quick_look: ClassVar = {"lengths": (512, 2048), "tokens": (4096,)}

    lengths: tuple[int, ...] = (512, 2048, 8192, 65536)
    """Tokens in a sequence."""
    tokens: tuple[int, ...] = (4096, 65536)
    """Tokens in a call, shared out to as many sequences as they make; each with all the lengths that divide it."""
    variants: tuple[Variant, ...] = ("none", "constant", "scalar", "channel", "denominator", "layer")
    """Out of none (no decay), constant (one a head), scalar (a gate a head and token), channel (a gate a key channel),
    denominator (positive features, no decay) and layer (a whole layer)."""
    modes: tuple[Mode, ...] = ("forward", "training", "decode")
    """Out of forward, training (forward + backward) and decode."""
    num_heads: int = 2
    """Heads."""
    head_dim: int = 64
    """Key and value channels of a head (decoding is measured at the sizes of GLA 340M)."""
