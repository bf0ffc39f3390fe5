"""What `attensor bench relative` can be asked for. No torch here: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BenchRelativeOptions", "Mode"]

Mode = Literal["forward", "training"]


@dataclass(frozen=True)
class BenchRelativeOptions:
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
    """Seconds a call may take, one of softmax attention twice as long. Who is expected to take more is left out, and
    the tables say so; ours only where softmax attention is."""
    quick: bool = False
    """A look in about a minute, two the first time: 2048 and 4096 tokens, forward alone."""
    save: bool = False
    """Also write benchmarks/results/<date>-relative-cpu.md."""

    def settled(self) -> BenchRelativeOptions:
        """The options with `quick` applied, lengths ascending.

        Raises:
            ValueError: nothing to measure, or a number that is not positive.
        """
        chosen = replace(self, lengths=(2048, 4096), modes=("forward",)) if self.quick else self
        for name in ("lengths", "sizes", "modes"):
            if not getattr(chosen, name):
                raise ValueError(f"bench relative: --{name}: nothing chosen.")
        for name in ("num_heads", "rounds"):
            if getattr(chosen, name) < 1:
                raise ValueError(f"bench relative: {name} must be at least 1, got {getattr(chosen, name)}.")
        if min(chosen.lengths) < 1 or min(min(pair) for pair in chosen.sizes) < 1:
            raise ValueError(
                f"bench relative: lengths and sizes must be at least 1, got {list(chosen.lengths)} and "
                f"{[list(pair) for pair in chosen.sizes]}."
            )
        if not chosen.budget > 0:
            raise ValueError(f"bench relative: budget must be positive, got {chosen.budget:g}.")
        return replace(chosen, lengths=tuple(sorted(set(chosen.lengths))))
