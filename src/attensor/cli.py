"""The command line: `attensor list | show | compare | generate | bench | doctor | reproduce`.

Commands are dataclasses, so that `--help` imports neither torch nor anything that trains; what a command needs is
imported by its handler.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from tyro.conf import Positional

from attensor.commands.bench_linear import BenchLinear
from attensor.commands.bench_neighborhood import BenchNeighborhood
from attensor.commands.bench_relative import BenchRelative
from attensor.commands.bench_softmax import BenchSoftmax
from attensor.compare.config import CompareConfig, GenerateConfig
from attensor.errors import BackendError, DataError, LawError, MissingExtraError, ShapeError

__all__ = ["main"]

USER_ERRORS = (ShapeError, DataError, BackendError, LawError, MissingExtraError, OSError)


@dataclass(frozen=True)
class ListCommand:
    """List the mechanisms of the catalogue."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class ShowCommand:
    """Print one card in full: what it is for, what it costs, and how to use it."""

    name: Positional[str]
    """Name of the mechanism, as `attensor list` gives it."""


@dataclass(frozen=True)
class DoctorCommand:
    """Say what is installed, and which back-end each operator would take here and why."""


@dataclass(frozen=True)
class ReproduceCommand:
    """Measure a paper's claim again; exit code 0 when it holds, 1 when it does not."""

    name: Positional[str]
    """Name of the recipe, or of the mechanism, as `attensor list` gives it."""
    quick: bool = False
    """Fewer steps and seeds, below a minute: an indication, not a verdict."""
    out: Path = Path("runs")
    """Folder that receives a new folder for the run."""
    resume: Path | None = None
    """Continue the run in this folder: what it has finished is not computed again."""
    save: bool = False
    """Also keep the verdict in benchmarks/results/claims and renew docs/claims.md."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Errors that attensor raises on purpose become one line on stderr and exit code 2; the environment variable
    `ATTENSOR_DEBUG=1` shows where they come from. Any other exception is a bug and keeps its traceback.
    Ctrl-C gives 130.

    Args:
        arguments: without the program's name; those of the process when None.
    """
    command = _parse(arguments)
    try:
        return HANDLERS[type(command)](command) or 0
    except KeyboardInterrupt:
        return 130
    except (*USER_ERRORS, ValueError) as error:
        if os.environ.get("ATTENSOR_DEBUG") or not _is_on_purpose(error):
            raise
        sys.stderr.write(f"attensor: {' '.join(str(error).split())}\n")
        return 2


def _parse(arguments: Sequence[str] | None) -> Any:
    bench = tyro.extras.SubcommandApp()
    bench.command(name="linear")(BenchLinear)
    bench.command(name="neighborhood")(BenchNeighborhood)
    bench.command(name="relative")(BenchRelative)
    bench.command(name="softmax")(BenchSoftmax)
    app = tyro.extras.SubcommandApp()
    app.command(name="list")(ListCommand)
    app.command(name="show")(ShowCommand)
    app.command(name="compare")(CompareConfig)
    app.command(name="generate")(GenerateConfig)
    app.command(bench, name="bench", help="Measure what the operators cost on this machine.")
    app.command(name="doctor")(DoctorCommand)
    app.command(name="reproduce")(ReproduceCommand)
    return app.cli(
        prog="attensor",
        description="Every attention in one place: pick one by measuring it on your data, then use it.",
        args=arguments,
    )


def _is_on_purpose(error: BaseException) -> bool:
    """Whether the message is meant for the user: one of our types, or a ValueError raised by our own code."""
    if isinstance(error, USER_ERRORS):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "attensor"


def _list(command: ListCommand) -> None:
    from attensor import listing

    if command.json:
        sys.stdout.write(listing.as_json())
    else:
        Console().print(listing.overview())


def _show(command: ShowCommand) -> None:
    from attensor import listing
    from attensor.catalogue import mechanism

    Console().print(listing.full(mechanism(command.name)))


def _compare(command: CompareConfig) -> None:
    from attensor.compare.run import compare

    compare(command)


def _generate(command: GenerateConfig) -> None:
    from attensor.compare.generate import generate_text

    sys.stdout.write(command.prompt)
    for piece in generate_text(command):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _doctor(command: DoctorCommand) -> None:
    from attensor import doctor

    doctor.run(Console())


def _reproduce(command: ReproduceCommand) -> int:
    if command.save and command.quick:
        raise ValueError("--save and --quick exclude each other: a quick run indicates and does not decide.")
    from attensor.recipes import CellError
    from attensor.recipes._reproduce import reproduce, save

    console = Console()
    try:
        verdict, folder = reproduce(command.name, console, quick=command.quick, out=command.out, resume=command.resume)
    except CellError as error:
        sys.stderr.write(f"attensor: {error}\n")
        return 2
    if command.save:
        save(folder, console)
    return 0 if verdict.holds else 1


HANDLERS: dict[type, Callable[[Any], int | None]] = {
    ListCommand: _list,
    ShowCommand: _show,
    CompareConfig: _compare,
    GenerateConfig: _generate,
    BenchLinear: BenchLinear.run,
    BenchNeighborhood: BenchNeighborhood.run,
    BenchRelative: BenchRelative.run,
    BenchSoftmax: BenchSoftmax.run,
    DoctorCommand: _doctor,
    ReproduceCommand: _reproduce,
}
