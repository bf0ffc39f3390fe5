"""`attensor bench linear`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from attensor.bench.linear.options import BenchLinearOptions

__all__ = ["BenchLinear"]


@dataclass(frozen=True)
class BenchLinear(BenchLinearOptions):
    """Speed and memory of linear attention against every peer that is installed, by length and while decoding.

    The default run takes some minutes on one idle thread. Ctrl-C keeps what is measured.
    """

    def run(self) -> None:
        """Measure and print."""
        from attensor.bench.linear import run

        run.run(Console(), self)
