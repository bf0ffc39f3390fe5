"""The commands that are always there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from attensor.compare.config import CompareConfig, GenerateConfig

__all__ = ["Compare", "Doctor", "Generate", "ListCards", "Reproduce", "ShowCard"]


@dataclass(frozen=True)
class ListCards:
    """List the cards of the catalogue."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Print them."""
        from attensor import listing

        if self.json:
            sys.stdout.write(listing.as_json())
        else:
            Console().print(listing.overview())


@dataclass(frozen=True)
class ShowCard:
    """Print one card in full: what it is for, what it costs, what it has and how to use it."""

    name: Positional[str]
    """Name of the card, as `attensor list` gives it."""

    def run(self) -> None:
        """Print it.

        Raises:
            ValueError: no card of that name.
        """
        from attensor import listing
        from attensor.catalogue import card

        Console().print(listing.full(card(self.name)))


@dataclass(frozen=True)
class Compare(CompareConfig):
    """Train the same small model with each mechanism on your data, measure its cost, and say what to pick."""

    def run(self) -> None:
        """Run or resume the comparison."""
        from attensor.compare.run import compare

        compare(self)


@dataclass(frozen=True)
class Generate(GenerateConfig):
    """Write text with a model that `attensor compare` trained, or with one in transformers' format."""

    def run(self) -> None:
        """Print the prompt and what follows, as it is decided."""
        from attensor.compare.generate import generate_text

        sys.stdout.write(self.prompt)
        for piece in generate_text(self):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


@dataclass(frozen=True)
class Reproduce:
    """Measure a paper's claim again, in at most five minutes on two cores.

    The verdict is reproduced, partly, or not seen at this size. Exit code 0 when it is reproduced, otherwise 1.
    """

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
        return 0 if verdict.outcome == "reproduced" else 1


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, and which back-end each operator would take here and why."""

    build: bool = False
    """Compile the C++ kernels first, unless they are there."""

    def run(self) -> None:
        """Print the tables."""
        from attensor import doctor

        doctor.run(Console(), build=self.build)
