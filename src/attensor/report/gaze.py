"""Paths of gaze over a scene, as numbers for the page's SVG."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from attensor.data.pictures import png

if TYPE_CHECKING:
    from torch import Tensor

    from attensor.data.object_scenes import Scenes

__all__ = ["Picture", "pictures"]

_CELL, _GAP, _SHOWN, _LETTERS = 84.0, 8.0, 12, 12
_BESIDE = [(aside, below) for aside in (0.0, 28.0, -28.0) for below in (0.0, 22.0)]  # as many marks as fit into a cell


@dataclass(frozen=True)
class Cell:
    """An object: its corner, its crop as PNG in base64 or nothing, how often it was looked at from 0 to 1."""

    x: float
    y: float
    name: str
    crop: str
    heat: float
    is_target: bool


@dataclass(frozen=True)
class Picture:
    """A scene with paths over it.

    Attributes:
        title: whose they are.
        width, height: of the picture.
        cells: the objects.
        lines: `points` of SVG polylines.
        stops: x, y and number of each fixation, where there is one path; of several in a row on one object, 4-7.
        text: for who cannot see it.
    """

    title: str
    width: float
    height: float
    cells: list[Cell]
    lines: list[str]
    stops: list[tuple[float, float, str]]
    text: str


def pictures(
    scene: Scenes, person: Tensor | None, paths: Sequence[Tensor], likely: Tensor, names: Sequence[str] = ()
) -> list[Picture]:
    """The most likely path, the drawn ones, and a person's where it is known; objects by names if they have any."""
    counts, shown = [0.0] * scene.looks.shape[1], min(_SHOWN, len(paths))
    for path in paths:
        for thing in set(path.tolist()):
            counts[thing] += 1 / len(paths)
    found = [
        _picture("The most likely choices", scene, [likely], [0.0] * len(counts), names),
        _picture(f"{len(paths)} drawn paths, of which {shown} are shown", scene, paths[:_SHOWN], counts, names),
    ]
    if person is not None:
        found.append(_picture("The person", scene, [person], [0.0] * len(counts), names))
    return found


def _picture(
    title: str, scene: Scenes, paths: Sequence[Tensor], heat: Sequence[float], names: Sequence[str]
) -> Picture:
    rows, columns = scene.grid[0].tolist()
    cells, target, step = scene.cells[0].tolist(), int(scene.target[0]), _CELL + _GAP
    centres = [(_GAP + column * step + _CELL / 2, _GAP + row * step + _CELL / 2) for row, column in cells]
    boxes = [
        Cell(x - _CELL / 2, y - _CELL / 2, _shown(names, thing), _crop(scene, thing), heat[thing], thing == target)
        for thing, (x, y) in enumerate(centres)
    ]
    many = len(paths) > 1
    lines = []
    for number, path in enumerate(paths):
        # paths that share a way lie side by side
        aside = 5.0 * (number - len(paths) // 2) if many else 0.0
        points = [(centres[thing][0] + aside, centres[thing][1] + aside) for thing in path.tolist()]
        lines.append(" ".join(f"{x:.1f},{y:.1f}" for x, y in points))
    stops = [] if many else _stops([centres[thing] for thing in paths[0].tolist()])
    text = f"{title}: {'; '.join(' '.join(map(str, path.tolist())) for path in paths)}"
    return Picture(title, _GAP + columns * step, _GAP + rows * step, boxes, lines, stops, text)


def _shown(names: Sequence[str], thing: int) -> str:
    """A name, or the number, as it fits into a cell."""
    name = names[thing] if names else str(thing)
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}\u2026"


def _stops(places: Sequence[tuple[float, float]]) -> list[tuple[float, float, str]]:
    """Numbers of the fixations at their objects: those in a row as one, those that come back beside it."""
    seen: dict[tuple[float, float], int] = {}
    stops, time = [], 1
    for (x, y), here in groupby(places):
        last = time + len(list(here)) - 1
        before = seen.get((x, y), 0)
        seen[x, y] = before + 1
        aside, below = _BESIDE[before % len(_BESIDE)]
        text = str(time) if time == last else f"{time}-{last}"
        stops.append((x + aside, y + below, text))
        time = last + 1
    return stops


def _crop(scene: Scenes, thing: int) -> str:
    if scene.looks.ndim != 5:
        return ""
    return base64.b64encode(png((scene.looks[0, thing].movedim(-1, 0) * 255).round().byte())).decode()
