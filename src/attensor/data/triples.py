"""Knowledge graphs from files: triples (subject, predicate, object), or four columns with a time, in three parts.

A source is a folder with train.txt, valid.txt and test.txt, one file of lines with tabs between (any suffix; a first
line "subject predicate object" or "head relation tail" is left out), one of N-Triples (.nt), or the name of a graph
inside PyKEEN: kinships, nations or umls. PyKEEN's licence is MIT, but that of these graphs is not stated, so that none
is copied here: it is read from an installed pykeen, or from its wheel in the folder where you are, as `pip download
--no-deps pykeen` leaves it there, without importing it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attensor.data.files import generator, inside_package
from attensor.errors import DataError, require

__all__ = ["BUNDLED", "Graph", "answers", "has_bundled", "open_graph", "read_triples"]

BUNDLED = ("kinships", "nations", "umls")
_PARTS = ("train", "valid", "test")
# first lines that name the columns
_HEADINGS = (("subject", "predicate", "object"), ("subject", "relation", "object"), ("head", "relation", "tail"))
_Names = tuple[str, ...]
_Place = Path | zipfile.Path


@dataclass(frozen=True)
class Graph:
    """A knowledge graph in numbers.

    Attributes:
        entities, relations, times: names, in alphabetical order; no times in a graph of triples.
        train, valid, test: int64 [M, 3] with (subject, predicate, object), or [M, 4] with the time behind.
    """

    entities: _Names
    relations: _Names
    times: _Names
    train: Tensor
    valid: Tensor
    test: Tensor

    @property
    def known(self) -> Tensor:
        """All that is true, of the three parts."""
        return torch.cat(self._parts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names and triples, by which the graph is known again."""
        told = json.dumps([self.entities, self.relations, self.times, *(x.tolist() for x in self._parts)])
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.train, self.valid, self.test


def open_graph(source: str, *, held_out: float = 0.1, seed: int = 0) -> Graph:
    """The graph of a file, a folder or a name.

    A single file is split: `held_out` of its lines each for validation and test, none of them the last line of an
    entity, predicate or time. Lines that repeat are kept once, in the first part that has them.

    Args:
        source: see above; a graph called as a file of yours is reached as `./umls`.
        held_out: share of a single file for each of the two other parts, from 0 to below 0.5.
        seed: of that split.
    Raises:
        DataError: no such file, or one with lines that cannot be read. MissingExtraError: N-Triples without rdflib.
    """
    if not 0 <= held_out < 0.5:
        raise DataError(f"held_out must be at least 0 and below 0.5, got {held_out}.")
    place = _bundled(source) if source in BUNDLED else Path(source).expanduser()
    if place.is_dir():
        parts = [read_triples(place / f"{part}.txt") if _has(place, part) else [] for part in _PARTS]
        if not parts[0]:
            raise DataError(
                f"{place}: holds no train.txt; give a file, or a folder with train.txt, valid.txt, test.txt."
            )
    elif place.is_file():
        parts = _split(list(dict.fromkeys(read_triples(place))), held_out, seed)
    else:
        raise DataError(f"{source}: there is no such file or folder; inside PyKEEN are {', '.join(BUNDLED)}.")
    return _numbered(str(source), parts)


def read_triples(place: _Place) -> list[_Names]:
    """Lines of a file as names, as they stand.

    Raises:
        DataError: a line of another form, with its number; lines of three and of four columns; no lines.
        MissingExtraError: N-Triples without rdflib.
    """
    rows = _n_triples(place) if place.name.endswith(".nt") else _tab_separated(place)
    if not rows:
        raise DataError(f"{place}: has no triples; give lines of subject, predicate and object with tabs between.")
    return rows


def answers(known: Tensor, asked: Tensor, count: int) -> Tensor:
    """Which entities are right answers to questions for the object.

    Args:
        known: [M, 3] or [M, 4], all that is true.
        asked: [B, 3] or [B, 4], as `known`; the object is not read.
        count: entities N.
    Returns:
        [B, N], bool.
    """
    rest = [0, 1, *range(3, known.shape[1])]
    _, key = torch.unique(torch.cat([known, asked])[:, rest], dim=0, return_inverse=True)
    of_known, of_asked = key[: len(known)], key[len(known) :]
    right = torch.zeros(int(key.max()) + 1 if len(key) else 0, count, dtype=torch.bool)
    right[of_known, known[:, 2]] = True
    return right[of_asked]


def has_bundled() -> bool:
    """Whether PyKEEN or its wheel is at hand."""
    return bool(inside_package("pykeen", "datasets/umls"))


def _bundled(name: str) -> _Place:
    for place in inside_package("pykeen", f"datasets/{name}"):
        if _has(place, "train"):
            return place
    raise DataError(
        f"{name}: comes inside PyKEEN, which is not here. pip download --no-deps pykeen brings its wheel (0.7 MB) into "
        "this folder, which is enough; pip install pykeen installs it with what it needs."
    )


def _has(place: _Place, part: str) -> bool:
    return (place / f"{part}.txt").is_file()


def _text(place: _Place) -> str:
    try:
        # Excel puts a mark before the first name
        return place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: is no UTF-8 text (byte {error.start}); save it as UTF-8, with tabs between."
        ) from error


def _tab_separated(place: _Place) -> list[_Names]:
    rows: list[_Names] = []
    # only ends of lines: names may hold what `splitlines` also takes for one
    for number, line in enumerate(_text(place).split("\n"), 1):
        row = tuple(part.strip() for part in line.split("\t"))
        if not line.strip() or (not rows and tuple(part.lower() for part in row[:3]) in _HEADINGS):
            continue
        if len(row) not in (3, 4) or not all(row):
            raise DataError(
                f"{place}, line {number}: must be subject, predicate, object and maybe a time with tabs between, got "
                f"{len(row)} column{'s' * (len(row) > 1)}; {_repair(line, row)}."
            )
        if rows and len(row) != len(rows[0]):
            raise DataError(f"{place}, line {number}: has {len(row)} columns, the lines before it {len(rows[0])}.")
        rows.append(row)
    return rows


def _repair(line: str, row: _Names) -> str:
    if len(row) in (3, 4):
        return "leave none empty"
    if len(row) > 1:
        return "give each line a subject, a predicate and an object"
    if line.rstrip().endswith((" .", ">.")):
        return "if it is N-Triples, call it .nt"
    return "put tabs in the place of commas" if line.count(",") > 1 else "put a tab between them"


def _n_triples(place: _Place) -> list[_Names]:
    rdflib = require("rdflib", purpose=f"{place.name}, a file of N-Triples,")
    try:
        found = rdflib.Graph().parse(data=_text(place), format="nt")
    except Exception as error:  # its parser has errors of many kinds
        raise DataError(f"{place}: is no N-Triples ({error}).") from error
    # a graph has no order; a literal keeps its quotes, so that it is no name
    return sorted(tuple(str(x) if isinstance(x, rdflib.URIRef) else x.n3() for x in row) for row in found)


def _split(rows: Sequence[_Names], share: float, seed: int) -> list[list[_Names]]:
    """Rows of training, validation and test: what would take away the last of a name stays in training."""
    left = Counter((place, name) for row in rows for place, name in _names(row))
    wanted, out = int(share * len(rows)), list[int]()
    for number in torch.randperm(len(rows), generator=generator(seed, 0)).tolist():
        names = Counter(_names(rows[number]))
        if len(out) < 2 * wanted and all(left[name] > count for name, count in names.items()):
            left -= names
            out.append(number)
    held, half = set(out), len(out) // 2
    return [
        [row for number, row in enumerate(rows) if number not in held],
        [rows[number] for number in out[:half]],
        [rows[number] for number in out[half:]],
    ]


def _names(row: _Names) -> list[tuple[str, str]]:
    kinds = ("entity", "relation", "entity", "time")
    return list(zip(kinds, row))


def _numbered(source: str, parts: Sequence[Iterable[_Names]]) -> Graph:
    rows = [list(part) for part in parts]
    if len({len(row) for part in rows for row in part}) > 1:
        raise DataError(f"{source}: some parts have a time and some have none; give all or none a fourth column.")
    everything = [row for part in rows for row in part]
    entities, relations, times = (
        tuple(sorted({row[place] for row in everything for place in places if place < len(row)}))
        for places in ((0, 2), (1,), (3,))
    )
    tables = [{name: number for number, name in enumerate(names)} for names in (entities, relations, entities, times)]
    seen: set[_Names] = set()
    tensors = []
    for part in rows:
        new = [row for row in dict.fromkeys(part) if row not in seen]
        seen.update(new)
        numbers = [[table[name] for table, name in zip(tables, row)] for row in new]
        tensors.append(torch.tensor(numbers, dtype=torch.int64).view(len(new), len(everything[0])))
    return Graph(entities, relations, times, *tensors)
