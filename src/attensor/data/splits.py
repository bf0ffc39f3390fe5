"""Who is set apart: the split that the names in a folder say, or else one of contents, without leakage either way.

Three sides: what is trained on, a selection that chooses learning rates, and a test that is read once.

Text. Where everything at the top of a folder has the name of a part (`train`, `val.txt`), that is the split. Else it is
a function of names and contents alone:

1. Byte-identical files form a group and never stand on two sides.
2. A group with more than the smallest share of all bytes keeps one copy, whose end is the test, with the selection
   before it; between the parts lies a gap of the longest window, which nobody reads. A single file is this case.
3. The other groups are set apart whole, in the order of a hash of their first name, until the share of the test is
   reached, and then that of the selection.

Images. A folder with `train` and `val` or `test`, and the classes inside each, is split as it says. Else the split is
stratified and depends on contents alone: in each class, groups of identical images are set apart in the order of a hash
until the shares are reached. Identical images never stand on two sides, even under different labels.

Of a split that its owner has made, `val` is the selection and `test` the test. With one of them only, that is the test,
and the selection is cut off what is trained on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.data.files import DataFile, hash_order
from attensor.data.left_out import LeftOut
from attensor.data.parts import TEST, TRAIN, VALIDATION, part_of
from attensor.data.stream import Segment
from attensor.errors import DataError

__all__ = [
    "SELECTION_SIDE",
    "TEST_SIDE",
    "TRAIN_SIDE",
    "Shares",
    "given_images",
    "given_text",
    "split_images",
    "split_text",
]

# of each image its side
TRAIN_SIDE, SELECTION_SIDE, TEST_SIDE = range(3)

_COPY = "also set apart for a later part"

Sides = tuple[list[Segment], list[Segment], list[Segment]]


@dataclass(frozen=True)
class Shares:
    """Which parts of all data are the selection and the test; a selection of 0 leaves it out.

    Raises:
        ValueError: a share outside of 0 to 1, no test, or nothing left to train on.
    """

    selection: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what leaves a side empty."""
        if not (self.selection >= 0 and self.test >= 0 and 0 < self.selection + self.test < 1):
            raise ValueError(
                f"selection and test must be shares that leave something to train on: got {self.selection} and "
                f"{self.test}, expected at least 0 each and a sum between 0 and 1."
            )

    @property
    def positive(self) -> list[float]:
        """The shares of the sides that there are."""
        return [share for share in (self.selection, self.test) if share]


def split_text(files: Sequence[DataFile], shares: Shares, *, gap: int) -> Sides:
    """The stretches to train on, those of the selection and those of the test, by the rules at the top of this file."""
    groups: dict[bytes, list[DataFile]] = defaultdict(list)
    for file in files:
        groups[file.fingerprint].append(file)
    most = min(shares.positive) * sum(file.size for file in files)
    whole = sorted(
        (group for group in groups.values() if len(group) * group[0].size <= most),
        key=lambda group: hash_order(group[0].name),
    )
    side_of = _sides_of_groups(whole, shares)
    sides: Sides = ([], [], [])
    for file in files:
        if file.fingerprint in side_of:
            sides[side_of[file.fingerprint]].append(Segment(file, 0, file.size))
        elif file is groups[file.fingerprint][0]:
            for side, segment in _parts_of_one(file, shares, gap):
                sides[side].append(segment)
    return sides


def _sides_of_groups(groups: Sequence[Sequence[DataFile]], shares: Shares) -> dict[bytes, int]:
    """By its fingerprint the side of each group of copies: the test first, so that it depends on its share alone."""
    sizes = [len(group) * group[0].size for group in groups]
    found, position = {}, 0
    for side, share in ((TEST_SIDE, shares.test), (SELECTION_SIDE, shares.selection)):
        taken = 0
        while position < len(groups) and taken < share * sum(sizes):
            found[groups[position][0].fingerprint] = side
            taken += sizes[position]
            position += 1
    return found | {group[0].fingerprint: TRAIN_SIDE for group in groups[position:]}


def _parts_of_one(file: DataFile, shares: Shares, gap: int) -> list[tuple[int, Segment]]:
    """The sides of one file, from its end."""
    end, found = file.size, []
    for side, share in ((TEST_SIDE, shares.test), (SELECTION_SIDE, shares.selection)):
        size = min(int(share * file.size), max(0, end))
        if size:
            found.append((side, Segment(file, end - size, size)))
            end -= size + gap
    if end > 0:
        found.append((TRAIN_SIDE, Segment(file, 0, end)))
    return found


def given_text(files: Sequence[DataFile], shares: Shares, left_out: LeftOut, *, gap: int) -> tuple[Sides, str] | None:
    """The three sides and how they came about, or None where the names at the top of the folder say no such thing.

    They say it if all folders at the top are called after parts of a data set; without folders, if all files are.
    """
    tops = [file.name.partition("/") for file in files]
    part = [part_of(name if slash else name.partition(".")[0]) for name, slash, _ in tops]
    is_telling = [bool(slash) for _, slash, _ in tops] if any(slash for _, slash, _ in tops) else [True] * len(tops)
    told = {part for part, tells in zip(part, is_telling, strict=True) if tells}
    if None in told or TRAIN not in told or len(told) < 2:
        return None
    by_part = {
        name: [file for file, of in zip(files, part, strict=True) if of == name] for name in (TRAIN, VALIDATION, TEST)
    }
    for file, of in zip(files, part, strict=True):
        if of is None:
            left_out.add(file.name, "of no part of the data set")
    test = by_part[TEST] or by_part[VALIDATION]
    selection = _without_copies(by_part[VALIDATION], test, left_out) if by_part[TEST] else []
    train = _without_copies(by_part[TRAIN], [*selection, *test], left_out)
    if selection or not shares.selection:
        sides = (_whole(train), _whole(selection), _whole(test))
    else:
        cut, chosen, _ = split_text(train, Shares(shares.selection, 0.0), gap=gap)
        sides = (cut, chosen, _whole(test))
    return sides, how_given("top of the folder", is_selection_cut=bool(shares.selection and not selection))


def _whole(files: Sequence[DataFile]) -> list[Segment]:
    return [Segment(file, 0, file.size) for file in files]


def how_given(place: str, *, is_selection_cut: bool) -> str:
    """The note that tells of a split that its owner has made."""
    rest = (
        "; what learning rates are chosen on is cut off the part to train on, since there is no third part"
        if is_selection_cut
        else ""
    )
    return f"The split is the one that the names at the {place} say{rest}."


def _without_copies(files: Sequence[DataFile], later: Sequence[DataFile], left_out: LeftOut) -> list[DataFile]:
    copies = {file.fingerprint for file in later}
    for file in files:
        if file.fingerprint in copies:
            left_out.add(file.name, _COPY)
    return [file for file in files if file.fingerprint not in copies]


def split_images(
    labels: Sequence[int], keys: Sequence[bytes], classes: Sequence[str], shares: Shares, *, source: str
) -> Tensor:
    """The side of each image, int64 [images]; images with equal `keys` are identical and stay together.

    Raises:
        DataError: a class cannot have an image on every side.
    """
    images: list[Counter[bytes]] = [Counter() for _ in classes]
    for label, key in zip(labels, keys, strict=True):
        images[label][key] += 1
    wanted = [(side, share) for side, share in ((TEST_SIDE, shares.test), (SELECTION_SIDE, shares.selection)) if share]
    side_of: dict[bytes, int] = {}
    for name, of_class in zip(classes, images, strict=True):
        counts = Counter({TRAIN_SIDE: 0})
        for key, count in of_class.items():
            if key in side_of:
                counts[side_of[key]] += count
        undecided = sorted((key for key in of_class if key not in side_of), key=hash_order)
        for position, key in enumerate(undecided):
            # the last images are kept for the sides that have none yet
            empty = [side for side, _ in wanted if not counts[side]] + [TRAIN_SIDE] * (not counts[TRAIN_SIDE])
            open_sides = [side for side, share in wanted if counts[side] < max(1.0, share * of_class.total())]
            must_fill = len(undecided) - position <= len(empty)
            side_of[key] = empty[0] if must_fill else (open_sides or [TRAIN_SIDE])[0]
            counts[side_of[key]] += of_class[key]
        if not all(counts[side] for side in (TRAIN_SIDE, *(side for side, _ in wanted))):
            raise DataError(
                f"{source!r}: the {of_class.total()} image(s) of class {name!r} are too few, all alike, or alike to "
                f"those of another class; a class needs at least {1 + len(wanted)} different images, one for each of "
                "training, selection and test."
            )
    return torch.tensor([side_of[key] for key in keys])


def given_images(
    files: Sequence[DataFile],
    labels: Sequence[int],
    sides: Sequence[int],
    classes: Sequence[str],
    shares: Shares,
    left_out: LeftOut,
    *,
    source: str,
) -> tuple[list[DataFile], list[int], Tensor]:
    """Files, labels and sides of a split that its owner has made, without the images that a later side has too.

    Where the owner has made no selection, it is cut off the training side.

    Raises:
        DataError: nothing of a class remains to train on.
    """
    rows = list(zip(files, labels, sides, strict=True))
    latest: dict[bytes, int] = {}
    for file, _, side in rows:
        latest[file.fingerprint] = max(side, latest.get(file.fingerprint, side))
    kept = [row for row in rows if row[2] == latest[row[0].fingerprint]]
    for file, _, side in rows:
        if side != latest[file.fingerprint]:
            left_out.add(file.name, _COPY)
    trained = {label for _, label, side in kept if side == TRAIN_SIDE}
    for label, name in enumerate(classes):
        if label not in trained:
            raise DataError(
                f"{source!r}: every image of class {name!r} to train on is also in another part; give others."
            )
    found = torch.tensor([side for _, _, side in kept])
    if shares.selection and not (found == SELECTION_SIDE).any():
        train = [i for i, side in enumerate(found.tolist()) if side == TRAIN_SIDE]
        own_labels, keys = [kept[i][1] for i in train], [kept[i][0].fingerprint for i in train]
        found[train] = split_images(own_labels, keys, classes, Shares(shares.selection, 0.0), source=source)
    return [row[0] for row in kept], [row[1] for row in kept], found
