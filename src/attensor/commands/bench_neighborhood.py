"""`attensor bench neighborhood`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

__all__ = ["BenchNeighborhood"]


@dataclass(frozen=True)
class BenchNeighborhood:
    """Time and memory of neighbourhood attention against a gather, a dense mask and NATTEN."""

    grids: tuple[tuple[int, int], ...] = ((64, 13), (32, 7))
    """Side of the square grid and window, in pairs: --grids 64 13 32 7."""
    windows: tuple[int, ...] = (3, 5, 7, 9, 13)
    """Windows of the memory table, measured on the first grid."""
    rounds: int = 5
    """Timed calls of each contestant; the median counts."""
    save: bool = False
    """Also write benchmarks/results/<date>-neighborhood-cpu.md."""

    def run(self) -> None:
        """Measure and print."""
        from attensor.bench import neighborhood

        settings = [neighborhood.Setting(side, window) for side, window in self.grids]
        neighborhood.run(Console(), settings=settings, windows=self.windows, rounds=self.rounds, save=self.save)
