"""`attensor bench relative`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from attensor.bench.relative_kernel.options import BenchRelativeOptions

__all__ = ["BenchRelative"]


@dataclass(frozen=True)
class BenchRelative(BenchRelativeOptions):
    """Kernelised attention with relative positions (NPRF) against softmax attention with the same bias, one thread.

    The default run takes some five minutes, of which one compiles flex attention, the first time. Ctrl-C keeps what is
    measured.
    """

    def run(self) -> None:
        """Measure and print."""
        from attensor.bench.relative_kernel import run

        run.run(Console(), self)
