"""`attensor bench neighborhood`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attensor.commands.bench import BenchOptions

__all__ = ["BenchNeighborhood"]


@dataclass(frozen=True)
class BenchNeighborhood(BenchOptions):
    """Time and memory of neighbourhood attention against a gather, a dense mask and NATTEN."""

    name = "neighborhood"
    quick_look: ClassVar = {"lines": ((128, 7),), "grids": ((32, 7),), "windows": (3, 7)}

    lines: tuple[tuple[int, int], ...] = ((128, 7),)
    """Length of the line and window, in pairs: 128x7."""
    grids: tuple[tuple[int, int], ...] = ((64, 13), (32, 7))
    """Side of the square grid and window, in pairs: 64x13,32x7; ours also on a grid of twice the first side."""
    windows: tuple[int, ...] = (3, 5, 7, 9, 13)
    """Windows that are measured too, forward alone, on the first grid."""
    budget: float = 60.0
