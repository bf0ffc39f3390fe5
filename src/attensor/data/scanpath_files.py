"""Recorded gaze in text: a scene and a path a line, in JSON.

    {"grid": [3, 9], "cells": [[0, 0], [0, 1], ..], "looks": [[0.1, ..], ..], "target": 4, "fixations": [7, 4]}

`crops` in place of `looks` names an image file for each object, beside the text file; all are brought to one size.
Objects are counted from 0 in the order of `cells`. Lines without `fixations` are scenes that somebody asks about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attensor.data.object_scenes import Scenes
from attensor.errors import DataError, ShapeError, need

__all__ = ["Recorded", "read_scanpaths"]


@dataclass(frozen=True)
class Recorded:
    """What a file holds, a scene and a path each.

    Attributes:
        scenes: one each.
        paths: [M] int64 each; None where the file has none.
    """

    scenes: list[Scenes]
    paths: list[Tensor | None]


def read_scanpaths(path: Path, *, crop_size: tuple[int, int] | None = None) -> Recorded:
    """Read a file, or all `.jsonl` and `.json` files of a folder in the order of their names.

    Args:
        path: the file or folder.
        crop_size: height and width that crops are brought to; that of the first crop if None.
    Raises:
        FileNotFoundError: no such file. DataError: a line that is not as above: names file and line.
    """
    found = Recorded([], [])
    crops = _Crops(crop_size)
    for file in _files(path):
        for number, text in enumerate(file.read_text("utf-8-sig").splitlines(), 1):
            if text.strip():
                try:
                    scene, fixations = _scene(json.loads(text), file.parent, crops)
                except (ValueError, TypeError, KeyError, ShapeError, OSError) as error:
                    raise DataError(f"{file}, line {number}: {_words(error)}") from error
                found.scenes.append(scene)
                found.paths.append(fixations)
    if not found.scenes:
        raise DataError(f"{path}: there is no scene in it; each line is one, as attensor show oat-scanpath says.")
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
    else:
        yield path


def _words(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r}; a line has grid, cells, looks or crops, target, and fixations"
    return str(error)


def _scene(line: Any, folder: Path, crops: _Crops) -> tuple[Scenes, Tensor | None]:
    if not isinstance(line, dict):
        raise ValueError(f"must be an object in braces, got {line!r:.60}")
    if "looks" in line:
        looks = torch.tensor(line["looks"], dtype=torch.float32)
        if not bool(looks.isfinite().all()):
            raise ValueError("looks must be numbers, got NaN or an infinite one")
    else:
        looks = torch.stack([crops(folder / name) for name in line["crops"]])
    cells, grid = torch.tensor(line["cells"]), torch.tensor(line["grid"])
    scene = Scenes(looks[None], cells[None], torch.tensor([line["target"]]), grid[None])
    if line.get("fixations") is None:
        return scene, None
    fixations = torch.tensor(line["fixations"], dtype=torch.int64)
    number = cells.shape[0]
    if fixations.ndim != 1 or not len(fixations) or not 0 <= int(fixations.min()) <= int(fixations.max()) < number:
        raise ValueError(f"fixations must be objects from 0 to {number - 1}, at least one, got {line['fixations']}")
    return scene, fixations


class _Crops:
    """Image files as [height, width, 3] from 0 to 1, each read once."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size, self._kept = size, dict[Path, Tensor]()

    def __call__(self, path: Path) -> Tensor:
        if path not in self._kept:
            need("PIL", purpose="crops of objects")
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                self.size = self.size or (image.height, image.width)
                resized = image.convert("RGB").resize(self.size[::-1])
            self._kept[path] = torch.from_numpy(np.array(resized)).float() / 255
        return self._kept[path]
