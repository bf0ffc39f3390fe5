"""The commands that are always there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from tyro.conf import Positional

from attensor.commands.extras import announce_missing_report
from attensor.compare.config import CompareConfig, GenerateConfig
from attensor.errors import need

__all__ = ["Compare", "Doctor", "Generate", "ListCards", "Reproduce", "ShowCard"]


@dataclass(frozen=True)
class ListCards:
    """List the cards of the catalogue: what there is, and what each is for."""

    names: Positional[tuple[str, ...]] = ()
    """Only these cards: their names, or what others call them. Left out: all."""
    json: bool = False
    """Print everything the cards say as JSON, for other programs."""

    def run(self) -> None:
        """Print them.

        Raises:
            ValueError: no card of one of the names.
        """
        from attensor import listing
        from attensor.catalogue import card, cards

        chosen = [card(name) for name in self.names] or list(cards().values())
        if self.json:
            sys.stdout.write(listing.as_json(chosen))
        else:
            Console().print(listing.overview(chosen))


@dataclass(frozen=True)
class ShowCard:
    """Print cards in full: what they are for, what they cost, what they have, and code to paste."""

    names: Positional[tuple[str, ...]]
    """Names of cards, as `attensor list` gives them, or what others call them (mamba2 is scalar-gated), in any case."""

    def __post_init__(self) -> None:
        """Refuse to show nothing.

        Raises:
            ValueError: no names.
        """
        _need_names(self.names)

    def run(self) -> None:
        """Print them.

        Raises:
            ValueError: no card of one of the names.
        """
        from attensor import listing
        from attensor.catalogue import card

        console = Console()
        for i, one in enumerate([card(name) for name in self.names]):
            if i:
                console.print()
            listing.show(one, console)


@dataclass(frozen=True)
class Compare(CompareConfig):
    """Train the same small model with each mechanism on your data, measure its cost, and say what to pick."""

    listed: ClassVar[tuple[str, ...]] = ("mechanisms", "size")

    def run(self) -> None:
        """Run or resume the comparison."""
        from attensor.compare.comparison import compare

        announce_missing_report(Console())
        compare(self)


@dataclass(frozen=True)
class Generate(GenerateConfig):
    """Write text with a model that `attensor compare` trained, or with one in transformers' format."""

    def run(self) -> int:
        """Print the prompt and what follows, as it is decided; then, to the standard error, how fast it came."""
        from attensor.commands.pace import sentence
        from attensor.compare.generate import generate_text
        from attensor.models.language.generate import Pace

        if self.model is not None:
            need("transformers", purpose="a model in transformers' format")
        pace, code, has_begun = Pace(), 0, False
        pieces = generate_text(self, pace)
        try:
            first = next(pieces, "")  # whatever is wrong is said before anything is printed
            has_begun = True
            sys.stdout.write(self.prompt + first)
            sys.stdout.flush()
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # what is written stays
            code = 130
        if has_begun:
            sys.stdout.write("\n")
            sys.stdout.flush()
        if pace.tokens:
            sys.stderr.write(f"{sentence(pace)}\n")
        return code


@dataclass(frozen=True)
class Reproduce:
    """Measure a paper's claim again, in at most five minutes on two cores, or as many as it says when it begins.

    The verdict is reproduced, partly, or not seen at this size. Exit code 0 when it is reproduced, otherwise 1.
    """

    names: Positional[tuple[str, ...]]
    """Names of cards that `attensor list` marks with reproduce, or of recipes."""
    quick: bool = False
    """Fewer steps and seeds, below a minute: it indicates and does not decide."""
    out: Path = Path("runs")
    """Folder that receives a new folder for the run."""
    resume: Path | None = None
    """Continue the run in this folder: what it has finished is not computed again."""
    save: bool = False
    """Also keep the verdict in benchmarks/results/claims and renew docs/claims.md; in a checkout of attensor."""

    def __post_init__(self) -> None:
        """Refuse to measure nothing.

        Raises:
            ValueError: no names.
        """
        _need_names(self.names)

    def run(self) -> int:
        """Measure, print the verdict and return the exit code.

        Raises:
            ValueError: no such recipe, or options that exclude each other.
        """
        if self.save and self.quick:
            raise ValueError("--save and --quick exclude each other: a quick run indicates and does not decide.")
        from attensor.recipes import CellError, find

        if self.resume is not None and len(self.names) > 1:
            raise ValueError(f"--resume {self.resume}: continues one run; name one recipe, not {len(self.names)}.")
        console = Console()
        recipes = [find(name) for name in self.names]
        for recipe in recipes:
            need(*recipe.needs, purpose=f"the recipe {recipe.name}")
        announce_missing_report(console)
        try:
            outcomes = [self._one(recipe.name, console) for recipe in recipes]
        except CellError as error:
            sys.stderr.write(f"attensor: {error}\n")
            return 2
        return 0 if set(outcomes) == {"reproduced"} else 1

    def _one(self, name: str, console: Console) -> str:
        from attensor.recipes._reproduce import reproduce, save

        verdict, folder = reproduce(name, console, quick=self.quick, out=self.out, resume=self.resume)
        if self.save:
            save(folder, console)
        return verdict.outcome


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, and which back-end each operator would take here and why."""

    build: bool = False
    """Compile the C++ kernels first, unless they are there."""

    def run(self) -> None:
        """Print the tables."""
        from attensor import doctor

        doctor.run(Console(), build=self.build)


def _need_names(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError("NAMES is missing: give one or more of `attensor list`")
