"""`attensor solve hull`, `solve tsp` and `solve delaunay`: what they can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from attensor.errors import need

if TYPE_CHECKING:
    from attensor.models.pointing.solving import Solution

__all__ = ["SolveDelaunay", "SolveHull", "SolveTsp"]


@dataclass(frozen=True)
class SolvePoints:
    """What the three have in common."""

    task: ClassVar[Literal["hull", "tsp", "delaunay"]]

    points: Path
    """Text file with a point a line, x and y parted by commas, semicolons, tabs or spaces, with or without a header; or
    a TSPLIB file, .tsp."""
    out: Path | None = None
    """Page to write, .html, with both answers drawn; or .csv, with the points of the model's answer in its order."""
    model: Path | None = None
    """Folder or file of attensor train points. Left out: the small model that comes with attensor."""
    width: int = 3
    """Beams of the model."""

    def __post_init__(self) -> None:
        """Refuse what could not be done in the end.

        Raises:
            ValueError: another suffix, or a number below 1.
        """
        if self.out is not None and self.out.suffix.lower() not in (".html", ".csv"):
            raise ValueError(f"--out must end in .html or .csv, got {str(self.out)!r}")
        if self.width < 1:
            raise ValueError(f"--width must be at least 1, got {self.width}")

    def run(self) -> None:
        """Read, solve, print and write.

        Raises:
            DataError, ValueError: points that cannot be used, a model of another task, or no folder to write to.
            FileNotFoundError: no such file.
        """
        need("scipy", purpose=f"attensor solve {self.task}")
        if self.out is not None and self.out.suffix.lower() == ".html":
            need("jinja2", purpose="a page")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise ValueError(f"--out {self.out}: there is no folder {self.out.parent}; make it first.")
        from attensor.data.point_files import read_points
        from attensor.models.pointing.saved import load_pointing, shipped_model
        from attensor.models.pointing.solving import solve_points

        given = read_points(self.points)
        model, facts = load_pointing(self.model or shipped_model(self.task))
        if facts.get("task", self.task) != self.task:
            raise ValueError(f"--model {self.model}: was trained for {facts['task']}; see attensor train points.")
        solution = solve_points(self.task, given, model, trained=facts.get("sizes"), width=self.width)
        console = Console()
        console.print(_table(solution))
        for sentence in (solution.verdict, *solution.notes):
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
        if self.out is not None:
            self._write(self.out, solution)
            console.print(f"Written: {self.out}", highlight=False, markup=False, soft_wrap=True)

    def _write(self, out: Path, solution: Solution) -> None:
        if out.suffix.lower() == ".csv":
            from attensor.files import write_text

            lines = [f"{number},{solution.rows[place - 1]}" for number, place in enumerate(solution.found, 1)]
            write_text(out, "\n".join(["place,point", *lines]) + "\n")
            return
        from attensor.report.document import write_document
        from attensor.report.points import drawings

        write_document(
            out,
            "attensor.report:points.html",
            task=self.task,
            drawings=drawings(solution),
            columns=_columns(solution),
            rows=_rows(solution),
            sentences=[solution.verdict, *solution.notes],
            facts={"points": str(self.points), "model": str(self.model or "the one that comes with attensor")},
        )


@dataclass(frozen=True)
class SolveHull(SolvePoints):
    """Give points to a pointer network trained on convex hulls, and compare with the exact hull."""

    task = "hull"


@dataclass(frozen=True)
class SolveTsp(SolvePoints):
    """Give cities to a pointer network trained on round tours, and compare with the shortest.

    Up to 12 cities that is exact, by dynamic programming; beyond, a local search with exchanges and moves of edges.
    """

    task = "tsp"


@dataclass(frozen=True)
class SolveDelaunay(SolvePoints):
    """Give points to a pointer network trained on Delaunay triangulations, and compare with the exact one."""

    task = "delaunay"


def _columns(solution: Solution) -> list[str]:
    return [f"{len(solution.points)} points", "pointer network", solution.solver]


def _rows(solution: Solution) -> list[list[str]]:
    rows = [[name, *both] for name, both in solution.measures.items()]
    return [*rows, ["time, ms", *(f"{1000 * seconds:.3g}" for seconds in solution.seconds)]]


def _table(solution: Solution) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(_columns(solution)):
        table.add_column(column, justify="right" if number else "left")
    for row in _rows(solution):
        table.add_row(*row)
    return table
