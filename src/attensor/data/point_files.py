"""Points from files: tables of two columns, the data sets of Pointer Networks, and TSPLIB's plane problems."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attensor.data.points import Instances, padded
from attensor.errors import DataError

__all__ = ["read_instances", "read_points", "read_tsplib"]

Array = np.ndarray[Any, Any]


def read_points(path: str | Path) -> Array:
    """Points of a text file, one a line: [n, 2] float64.

    Args:
        path: columns are parted by commas, semicolons, tabs or spaces. A first line without numbers is a header; one
            that names x and y says which columns they are, otherwise there must be two. A TSPLIB file is read as such.
            Quotes, empty lines and what follows # are left out.
    Raises:
        DataError: no such file, no text, a line with other columns, what is no number, NaN or infinity; with the line.
    """
    path = Path(path)
    text = _text(path)
    if path.suffix.lower() == ".tsp" or "NODE_COORD_SECTION" in text:
        return read_tsplib(path)
    rows = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1)]
    cells = [(number, _cells(line)) for number, line in rows if line]
    if not cells:
        raise DataError(f"{str(path)!r} has no points; give one a line: 0.25,0.5.")
    columns = None
    if not any(map(_is_number, cells[0][1])):
        header = [cell.lower() for cell in cells.pop(0)[1]]
        columns = (header.index("x"), header.index("y")) if {"x", "y"} <= set(header) else None
    if not cells:
        raise DataError(f"{str(path)!r} has a header and no points.")
    return np.array([_point(path, number, row, columns) for number, row in cells], dtype=np.float64)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {str(path)!r}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is no text in UTF-8; give a table with two columns of numbers.") from error


def _cells(line: str) -> list[str]:
    parting = next((mark for mark in ";\t," if mark in line), None)
    return [cell.strip().strip("\"'") for cell in (line.split(parting) if parting else line.split())]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _point(path: Path, number: int, row: list[str], columns: tuple[int, int] | None) -> list[float]:
    where = f"{str(path)!r}, line {number}"
    if columns is None and len(row) != 2:
        raise DataError(
            f"{where}: has {len(row)} column{'s' * (len(row) != 1)}, not 2; give x and y, or a header that names them."
        )
    if columns is not None and len(row) <= max(columns):
        raise DataError(f"{where}: has {len(row)} columns, fewer than the header.")
    point = []
    for cell in (row[i] for i in columns or (0, 1)):
        if not _is_number(cell):
            hint = "; decimals take a point, as in 0.5" if _is_number(cell.replace(",", ".")) else ""
            raise DataError(f"{where}: {cell!r:.40} is not a number{hint}.")
        if not math.isfinite(float(cell)):
            raise DataError(f"{where}: {cell} is not finite; leave the point out.")
        point.append(float(cell))
    return point


def read_tsplib(path: str | Path) -> Array:
    """Cities of a TSPLIB file whose distances are EUC_2D: [n, 2] float64, in the file's order.

    Raises:
        DataError: other distances, no NODE_COORD_SECTION, or another number of cities than DIMENSION says.
    Source: Reinelt, "TSPLIB - a traveling salesman problem library", 1991.
    """
    path = Path(path)
    head, _, body = _text(path).partition("NODE_COORD_SECTION")
    facts = dict(re.findall(r"(?m)^\s*(\w+)\s*:\s*(.*?)\s*$", head))
    kind = facts.get("EDGE_WEIGHT_TYPE", "EUC_2D")
    if not body or kind != "EUC_2D":
        what = f"has distances {kind}" if body else "has no NODE_COORD_SECTION"
        raise DataError(f"{str(path)!r} {what}; cities in the plane (EUC_2D) are read.")
    rows = [line.split() for line in body.partition("EOF")[0].splitlines() if line.strip()]
    cities = []
    for row in rows:
        if len(row) != 3 or not all(map(_is_number, row)):
            break  # another section
        cities.append([float(row[1]), float(row[2])])
    wanted = facts.get("DIMENSION", str(len(cities)))
    if str(len(cities)) != wanted or not np.isfinite(cities).all():
        raise DataError(f"{str(path)!r} has {len(cities)} cities, and says DIMENSION {wanted}.")
    return np.array(cities, dtype=np.float64).reshape(-1, 2)


def read_instances(path: str | Path, *, member: str | None = None, limit: int | None = None) -> Instances:
    """Sets of points with answers as the authors of Pointer Networks published them.

    A line is `x1 y1 .. xn yn output c1 c2 .. ck c1`: the answer is closed, and has no end symbol; it is added here.

    Args:
        path: `convex_hull_*.txt`, `tsp_*.txt`, or a `.zip` of such; all of its texts are read one after the other.
        member: the one to read of a `.zip`, such as `"tsp5_test.txt"`.
        limit: so many lines at most.
    Raises:
        DataError: a line of another form, by its number; a suffix that is none of these; no such member.
    Source: the data of arXiv:1506.03134, as its section 4 describes it.
    """
    points: list[Tensor] = []
    answers: list[list[int]] = []
    for number, line in enumerate(_lines(Path(path), member), 1):
        if limit is not None and len(points) >= limit:
            break
        if line.strip():
            one, answer = _instance(f"{str(path)!r}, line {number}", line)
            points.append(one)
            answers.append(answer)
    if not points:
        raise DataError(f"{str(path)!r} has no lines with points.")
    return padded(points, answers)


def _lines(path: Path, member: str | None) -> Iterator[str]:
    if path.suffix == ".txt":
        with path.open(encoding="utf-8") as file:
            yield from file
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            texts = [name for name in archive.namelist() if name.endswith(".txt")]
            if member is not None and member not in texts:
                raise DataError(f"{str(path)!r} has no {member!r}; it has {', '.join(texts)}.")
            for name in texts if member is None else [member]:
                with archive.open(name) as raw:
                    yield from io.TextIOWrapper(raw, "utf-8")
    else:
        raise DataError(f"{str(path)!r} must end in .txt or .zip.")


def _instance(where: str, line: str) -> tuple[Tensor, list[int]]:
    left, parting, right = line.partition("output")
    try:
        numbers, answer = [float(x) for x in left.split()], [int(x) for x in right.split()]
    except ValueError as error:
        raise DataError(f"{where}: {error}.") from error
    if not parting or not numbers or len(numbers) % 2 or not answer:
        raise DataError(f"{where}: is not of the form x1 y1 .. xn yn output c1 .. ck c1.")
    if min(answer) < 1 or max(answer) > len(numbers) // 2:
        raise DataError(f"{where}: has places from {min(answer)} to {max(answer)} for {len(numbers) // 2} points.")
    return torch.tensor(numbers).view(-1, 2), [*answer, 0]
