"""Paths of gaze over a scene, as numbers for the page's SVG."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attensor.data.pictures import png

if TYPE_CHECKING:
    from torch import Tensor

    from attensor.data.object_scenes import Scenes

__all__ = ["Picture", "pictures"]

_CELL, _GAP, _SHOWN = 84.0, 8.0, 12


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
        stops: x, y and number of each fixation, where there is one path.
        text: for who cannot see it.
    """

    title: str
    width: float
    height: float
    cells: list[Cell]
    lines: list[str]
    stops: list[tuple[float, float, int]]
    text: str


def pictures(scene: Scenes, person: Tensor | None, paths: Sequence[Tensor], likely: Tensor) -> list[Picture]:
    """The most likely path, the drawn ones, and a person's where it is known."""
    counts = [0.0] * scene.looks.shape[1]
    for path in paths:
        for thing in set(path.tolist()):
            counts[thing] += 1 / len(paths)
    found = [
        _picture("The most likely choices", scene, [likely], [0.0] * len(counts)),
        _picture(
            f"{len(paths)} drawn paths, of which {min(_SHOWN, len(paths))} are shown", scene, paths[:_SHOWN], counts
        ),
    ]
    if person is not None:
        found.append(_picture("The person", scene, [person], [0.0] * len(counts)))
    return found


def _picture(title: str, scene: Scenes, paths: Sequence[Tensor], heat: Sequence[float]) -> Picture:
    rows, columns = scene.grid[0].tolist()
    cells, target, step = scene.cells[0].tolist(), int(scene.target[0]), _CELL + _GAP
    centres = [(_GAP + column * step + _CELL / 2, _GAP + row * step + _CELL / 2) for row, column in cells]
    boxes = [
        Cell(x - _CELL / 2, y - _CELL / 2, str(thing), _crop(scene, thing), heat[thing], thing == target)
        for thing, (x, y) in enumerate(centres)
    ]
    many = len(paths) > 1
    lines = []
    for number, path in enumerate(paths):
        # paths that share a way lie side by side
        aside = 5.0 * (number - len(paths) // 2) if many else 0.0
        points = [(centres[thing][0] + aside, centres[thing][1] + aside) for thing in path.tolist()]
        lines.append(" ".join(f"{x:.1f},{y:.1f}" for x, y in points))
    stops = [] if many else [(*centres[thing], time) for time, thing in enumerate(paths[0].tolist(), 1)]
    if not many:
        stops = _apart(stops)
    text = f"{title}: {'; '.join(' '.join(map(str, path.tolist())) for path in paths)}"
    return Picture(title, _GAP + columns * step, _GAP + rows * step, boxes, lines, stops, text)


def _apart(stops: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Fixations of one object in a row across it, so that each number can be read."""
    seen: dict[tuple[float, float], int] = {}
    moved = []
    for x, y, time in stops:
        before = seen.get((x, y), 0)
        seen[x, y] = before + 1
        moved.append((x + 18.0 * (before % 3), y + 18.0 * (before // 3), time))
    return moved


def _crop(scene: Scenes, thing: int) -> str:
    if scene.looks.ndim != 5:
        return ""
    return base64.b64encode(png((scene.looks[0, thing].movedim(-1, 0) * 255).round().byte())).decode()
