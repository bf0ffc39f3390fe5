"""`attensor bench neighborhood`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BenchNeighborhood"]


@dataclass(frozen=True)
class BenchNeighborhood:
    """Time and memory of neighbourhood attention against a gather, a dense mask and NATTEN, one thread."""

    grids: tuple[tuple[int, int], ...] = ((64, 13), (32, 7))
    """Side of the square grid and window, in pairs: --grids 64 13 32 7."""
    windows: tuple[int, ...] = (3, 5, 7, 9, 13)
    """Windows that are measured too, forward alone, on the first grid."""
    rounds: int = 5
    """Timed calls of each contestant; the median counts."""
    save: bool = False
    """Also write benchmarks/results/<date>-neighborhood-cpu.md and .json."""

    def run(self) -> int:
        """Measure, print and optionally save."""
        from attensor.bench.hold import hold

        return hold("neighborhood", self)
