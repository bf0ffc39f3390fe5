"""`attensor reproduce NAME`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

__all__ = ["Reproduce"]


@dataclass(frozen=True)
class Reproduce:
    """Measure a paper's claim again; exit code 0 when it holds, 1 when it does not."""

    name: Positional[str]
    """Name of the recipe, or of the card, as `attensor list` gives it."""
    quick: bool = False
    """Fewer steps and seeds, below a minute: an indication, not a verdict."""
    out: Path = Path("runs")
    """Folder that receives a new folder for the run."""
    resume: Path | None = None
    """Continue the run in this folder: what it has finished is not computed again."""
    save: bool = False
    """Also keep the verdict in benchmarks/results/claims and renew docs/claims.md."""

    def run(self) -> int:
        """Measure, print the verdict and return the exit code.

        Raises:
            ValueError: no such recipe, or options that exclude each other.
        """
        if self.save and self.quick:
            raise ValueError("--save and --quick exclude each other: a quick run indicates and does not decide.")
        from attensor.recipes import CellError
        from attensor.recipes._reproduce import reproduce, save

        console = Console()
        try:
            verdict, folder = reproduce(self.name, console, quick=self.quick, out=self.out, resume=self.resume)
        except CellError as error:
            sys.stderr.write(f"attensor: {error}\n")
            return 2
        if self.save:
            save(folder, console)
        return 0 if verdict.holds else 1
