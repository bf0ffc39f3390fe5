"""`attensor bench parallel`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attensor.commands.bench import BenchOptions

__all__ = ["BenchParallel"]


@dataclass(frozen=True)
class BenchParallel(BenchOptions):
    """One decoding step of latent attention on each of some ranks: slices of the latent (TPLA) against heads alone.

    The sizes are DeepSeek-V2-Lite's. First the attention of one rank by itself, then that of all ranks at once, in
    processes of this machine. A quick look is one at 8192 tokens.
    """

    name = "parallel"
    quick_look: ClassVar = {"lengths": (8192,)}

    lengths: tuple[int, ...] = (8192, 16384, 32768)
    """Tokens that are held before the step."""
    ranks: int = 2
    """Processes; as many slices of the latent."""
    num_heads: int = 16
    """Heads of the whole layer, a multiple of the ranks."""
    kv_rank: int = 512
    """Width of the whole latent, a multiple of the ranks."""
    rotary_dim: int = 64
    """Width of the rotary key, which every rank holds."""
    hidden_size: int = 2048
    """Channels of the layer."""
    rounds: int = 9
