"""`attensor doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

__all__ = ["Doctor"]


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, and which back-end each operator would take here and why."""

    build: bool = False
    """Compile the C++ kernels first, unless they are there."""

    def run(self) -> None:
        """Print the tables."""
        from attensor import doctor

        doctor.run(Console(), build=self.build)
