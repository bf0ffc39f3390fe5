"""Recorded gaze in text: a scene and a path a line, in JSON.

    {"grid": [3, 9], "cells": [[0, 0], [0, 1], ..], "looks": [[0.1, ..], ..], "target": 4, "fixations": [7, 4]}

A file may also be a single scene on several lines, or a list of scenes.
`crops` in place of `looks` names an image file for each object, beside the text file; all are brought to one size.
Objects are counted from 0 in the order of `cells`; `names` may name them. Lines without `fixations` are scenes that
somebody asks about. A folder with two tables of recorded reading is read as `attensor.data.reading` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attensor.data.object_scenes import Scenes
from attensor.data.reading import ONESTOP, find_reports, onestop, read_reports
from attensor.data.recorded import Recorded
from attensor.errors import DataError, ShapeError, need

__all__ = ["read_scanpaths"]


def read_scanpaths(path: Path, *, crop_size: tuple[int, int] | None = None) -> Recorded:
    """Read a file, or all `.jsonl` and `.json` files of a folder in the order of their names, or tables of reading.

    Args:
        path: the file or folder; `onestop`, where there is no file called so, is the readings inside another package.
        crop_size: height and width that crops are brought to; that of the first crop if None.
    Raises:
        FileNotFoundError: no such file. DataError: a line that is not as above: names file and line.
    """
    if str(path) == ONESTOP and not path.exists():
        return read_reports(onestop())
    if path.is_dir() and find_reports(path) is not None:
        return read_reports(path)
    found = Recorded([], [], [])
    crops = _Crops(crop_size)
    for file in _files(path):
        for place, line in _lines(file):
            try:
                scene, fixations, names = _scene(line, file.parent, crops)
            except (ValueError, TypeError, KeyError, ShapeError, OSError) as error:
                raise DataError(f"{file}, {place}: {_words(error)}") from error
            found.scenes.append(scene)
            found.paths.append(fixations)
            found.names.append(names)
    if not found.scenes:
        raise DataError(
            f"{path}: there is no scene in it. A .jsonl or .json file has one a line: grid, cells, looks or crops, "
            "target, and fixations; a folder may hold two tables of reading instead, with areas and fixations."
        )
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no UTF-8 text (byte {error.start}); each line is a scene in JSON.") from error


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
    else:
        yield path


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    """What each line holds and where it is; a file that is one scene or one list, on however many lines, is that."""
    if file.suffix.lower() in (".csv", ".tsv"):
        raise DataError(
            f"{file}: a table of reading lies in a folder with the other, areas and fixations; name the folder."
        )
    text = _text(file)
    try:
        whole = json.loads(text) if text.strip() else []
        scenes = whole if isinstance(whole, list) else [whole]
        yield from ((f"scene {number}", scene) for number, scene in enumerate(scenes, 1))
        return
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":  # which is what further lines are
            raise DataError(f"{file}, line {error.lineno}: is no JSON ({error.msg}).") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{file}, line {number}: is no JSON ({error.msg}).") from error


def _words(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r}; a line has grid, cells, looks or crops, target, and fixations"
    return str(error)


def _scene(line: Any, folder: Path, crops: _Crops) -> tuple[Scenes, Tensor | None, tuple[str, ...]]:
    if not isinstance(line, dict):
        raise ValueError(f"must be an object in braces, got {line!r:.60}")
    cells = _integers("cells", line["cells"], "[row, column] of each object", 2)
    grid = _integers("grid", line["grid"], "[rows, columns]", 1)
    target = _integers("target", line["target"], "the number of an object", 0)
    scene = Scenes(_looks(line, folder, crops)[None], cells[None], target[None], grid[None])
    number = cells.shape[0]
    names = _names(line.get("names", ()), number)
    if line.get("fixations") is None:
        return scene, None, names
    fixations = _integers("fixations", line["fixations"], f"objects from 0 to {number - 1}, at least one", 1)
    if not 0 <= int(fixations.min()) <= int(fixations.max()) < number:
        raise ValueError(f"fixations must be objects from 0 to {number - 1}, at least one, got {line['fixations']}")
    return scene, fixations, names


def _integers(name: str, given: Any, form: str, dimensions: int) -> Tensor:
    try:
        found = torch.tensor(given)
    except (TypeError, ValueError, RuntimeError):  # of texts, of rows that are not alike, of numbers beyond 64 bits
        found = torch.empty(0)
    if found.dtype != torch.int64 or found.ndim != dimensions or not found.numel():
        raise ValueError(f"{name} must be {form}, in whole numbers, got {given!r:.60}")
    return found


def _looks(line: dict[str, Any], folder: Path, crops: _Crops) -> Tensor:
    if "looks" not in line:
        if not isinstance(line["crops"], list) or not all(isinstance(name, str) for name in line["crops"]):
            raise ValueError(f"crops must be names of image files, one an object, got {line['crops']!r:.60}")
        return torch.stack([crops(folder / name) for name in line["crops"]])
    try:
        looks = torch.tensor(line["looks"], dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"looks must be numbers, as many of every object, got {line['looks']!r:.60} ({error})"
        ) from error
    if not bool(looks.isfinite().all()):
        raise ValueError("looks must be numbers, got NaN or an infinite one")
    if looks.ndim != 2:
        raise ValueError(f"looks must be a list of numbers for each object, got {line['looks']!r:.60}")
    if len(looks) != len(line["cells"]):
        raise ValueError(f"looks must be as many as cells, {len(line['cells'])}, got {len(looks)}")
    return looks


def _names(given: Any, number: int) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"names must be a list of texts, got {given!r:.60}")
    if given and len(given) != number:
        raise ValueError(f"names must be as many as cells, {number}, got {len(given)}")
    return tuple(given)


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
