"""`attensor solve scanpath`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich import box
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from attensor.commands.small_training import say
from attensor.errors import DataError, need, plain

if TYPE_CHECKING:
    from torch import Tensor

    from attensor.data.object_scenes import Scenes
    from attensor.models.pointing.oat import OAT

__all__ = ["SolveScanpath"]


@dataclass(frozen=True)
class SolveScanpath:
    """Say where people would look who search an object of a scene, with a trained OAT."""

    scene: Positional[Annotated[Path, arg(metavar="FILE")]]
    """File with a scene in JSON: {"grid": [3, 6], "cells": [[0, 0], ..], "looks": [[..], ..], "target": 4}, or crops,
    names of image files beside it. With fixations, those are compared. Or what else attensor train scanpaths takes."""
    model: Path
    """Folder of attensor train scanpaths."""
    out: Path | None = None
    """Page to write, .html, with the paths over the scene; or .json, with all of them."""
    number: int = 1
    """Which scene of the file, counted from 1."""
    samples: int = 100
    """Paths that are drawn."""
    temperature: float = 1.0
    """Of the choices; 1 draws from the model, 0 takes the most likely object each time."""
    seed: int = 0
    """Of the choices."""

    def __post_init__(self) -> None:
        """Refuse what could not be done in the end.

        Raises:
            ValueError: another suffix, or a number out of range.
        """
        if self.out is not None and self.out.suffix.lower() not in (".html", ".json"):
            raise ValueError(f"--out must end in .html or .json, got {str(self.out)!r}")
        for option in ("samples", "number"):
            if getattr(self, option) < 1:
                raise ValueError(f"--{option} must be at least 1, got {getattr(self, option)}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature must be at least 0, got {self.temperature}")

    def run(self) -> None:
        """Read, look, print and write.

        Raises:
            DataError, ValueError: a scene that is not there, cannot be read or does not fit the model; no folder to
                write to.
            FileNotFoundError: no model.
        """
        if self.out is not None and self.out.suffix.lower() == ".html":
            need("jinja2", purpose="a page")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise ValueError(f"--out {self.out}: there is no folder {self.out.parent}; make it first.")
        import torch

        from attensor.models.pointing.oat import OAT

        model = OAT.load(self.model)
        scene, person, names, count = self._asked(model)
        random = torch.Generator().manual_seed(self.seed)
        drawn, lengths = model.generate(scene, samples=self.samples, temperature=self.temperature, generator=random)
        likely, _ = model.generate(scene, temperature=0.0)
        paths = [path[:length] for path, length in zip(drawn[0], lengths[0])]
        result = _Result(scene, person, names, paths, likely[0, 0][likely[0, 0] >= 0])
        console = Console()
        console.print(result.table())
        for sentence in result.sentences():
            say(console, sentence)
        if count > 1:
            say(console, f"The file holds {count} scenes; this is number {self.number}.")
        if self.out is not None:
            self._write(self.out, result)
            say(console, f"Written: {self.out}")

    def _asked(self, model: OAT) -> tuple[Scenes, Tensor | None, tuple[str, ...], int]:
        """The scene, what a person looked at, names, and how many scenes there are."""
        from attensor.data.scanpath_files import read_scanpaths

        look = model.config.look
        try:
            found = read_scanpaths(self.scene, crop_size=(look[0], look[1]) if len(look) == 2 else None)
        except FileNotFoundError as error:
            raise DataError(f"{self.scene}: there is no such file; it holds a scene in JSON.") from error
        if self.number > len(found.scenes):
            raise ValueError(f"--number {self.number}: {self.scene} holds {len(found.scenes)} scenes.")
        place = self.number - 1
        return found.scenes[place], found.paths[place], found.names[place], len(found.scenes)

    def _write(self, out: Path, result: _Result) -> None:
        from attensor.files import write_json

        if out.suffix.lower() == ".json":
            write_json(out, {"likely": result.likely.tolist(), "samples": [path.tolist() for path in result.paths]})
            return
        from attensor.report.document import write_document
        from attensor.report.gaze import pictures

        which = f", number {self.number}" if self.number > 1 else ""
        write_document(
            out,
            "attensor.report:gaze.html",
            pictures=pictures(result.scene, result.person, result.paths, result.likely, result.names),
            sentences=result.sentences(),
            facts={
                "scene": f"{self.scene}{which}",
                "model": str(self.model),
                "seed": self.seed,
                "samples": self.samples,
            },
        )


@dataclass(frozen=True)
class _Result:
    scene: Scenes
    person: Tensor | None
    names: tuple[str, ...]
    paths: list[Tensor]
    likely: Tensor

    def table(self) -> Table:
        """Objects by how many of the paths come to them."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for number, column in enumerate(
            ("object", "row, column", "paths that look at it", "first", "fixations a path")
        ):
            table.add_column(column, justify="right" if number > 1 else "left")
        cells, target = self.scene.cells[0].tolist(), int(self.scene.target[0])
        for share, thing, first, mean in self.visits()[:8]:
            name = plain(f"{thing} {self.names[thing]}", most=30) if self.names else str(thing)
            name += " (target)" if thing == target else ""
            table.add_row(name, ", ".join(map(str, cells[thing])), f"{share:.0%}", f"{first:.0%}", f"{mean:.2f}")
        return table

    def visits(self) -> list[tuple[float, int, float, float]]:
        """Of each object: share of the paths, the object, share of them that begin there, fixations a path."""
        count = len(self.paths)
        rows = []
        for thing in range(self.scene.looks.shape[1]):
            times = [int((path == thing).sum()) for path in self.paths]
            first = sum(int(path[0]) == thing for path in self.paths)
            rows.append((sum(time > 0 for time in times) / count, thing, first / count, sum(times) / count))
        return sorted(rows, reverse=True)

    def sentences(self) -> list[str]:
        """What was seen, in words."""
        from attensor.data.gaze import padded_paths
        from attensor.metrics.scanpath import sequence_score

        target = int(self.scene.target[0])
        ends = sum(int(path[-1]) == target for path in self.paths) / len(self.paths)
        length = sum(map(len, self.paths)) / len(self.paths)
        words = [
            f"{ends:.0%} of {len(self.paths)} paths end at the target, after {length:.1f} fixations on average; "
            f"the most likely choices: {' '.join(map(str, self.likely.tolist()))}."
        ]
        if self.person is not None:
            people: Any = self.person.expand(len(self.paths), -1)
            score = sequence_score(padded_paths(self.paths), people).mean().item()
            words.append(
                f"The person looked at {' '.join(map(str, self.person.tolist()))}: sequence score of the drawn paths "
                f"{score:.3f}, which says little without another person's path."
            )
        return words
