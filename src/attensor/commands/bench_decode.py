"""`attensor bench decode`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attensor.commands.bench import BenchOptions

__all__ = ["BenchDecode"]


@dataclass(frozen=True)
class BenchDecode(BenchOptions):
    """Time of one more token and bytes of state by context, of every causal mechanism and of transformers' own layers.

    One layer with its cache at each context; transformers' have the same weights. A context is reached by repeating
    what the layer keeps of a short prompt. A quick look is one at 1024 and 8192 tokens.
    """

    name = "decode"
    quick_look: ClassVar = {"contexts": (1024, 8192), "rounds": 3}

    contexts: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Tokens before the one that is timed."""
    mechanisms: tuple[str, ...] = ("all",)
    """Names of causal mechanisms, as `attensor list` gives them, or all."""
    batch_size: int = 1
    """Sequences that get a token at once."""
    hidden_size: int = 512
    """Channels of the layer."""
    num_heads: int = 8
    """Heads."""
    rounds: int = 9
