"""Who is held out: the split that the names in a folder say, or else one of contents, without leakage either way.

Text. Where everything at the top of a folder has the name of a part (`train`, `val.txt`), that is the split. Else it is
a function of names and contents alone:

1. Byte-identical files form a group and never stand on both sides.
2. A group with more than the held-out share of all bytes keeps one copy, whose end is held out; between its two parts
   lies a gap of the longest window, which nobody reads. A single file is this case.
3. The other groups are held out whole, in the order of a hash of their first name, until the share is reached.

Images. A folder with `train` and `val` (or `test`), and the classes inside each, is split as it says. Else the split is
stratified and depends on contents alone: in each class, groups of identical images are held out in the order of a hash
until the share is reached. Identical images never stand on both sides, even under different labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from attensor.data.files import DataFile, hash_order
from attensor.data.left_out import LeftOut
from attensor.data.parts import TEST, TRAIN, VALIDATION, part_of
from attensor.data.stream import Segment
from attensor.errors import DataError

__all__ = ["given_images", "given_text", "split_images", "split_text"]

_COPY = "to train on, but also held out"


def split_text(files: Sequence[DataFile], *, held_out: float, gap: int) -> tuple[list[Segment], list[Segment]]:
    """The stretches to train on and the held-out ones, by the rules at the top of this file."""
    groups: dict[bytes, list[DataFile]] = defaultdict(list)
    for file in files:
        groups[file.fingerprint].append(file)
    share = held_out * sum(file.size for file in files)
    whole = sorted(
        (group for group in groups.values() if len(group) * group[0].size <= share),
        key=lambda group: hash_order(group[0].name),
    )
    target = held_out * sum(len(group) * group[0].size for group in whole)
    taken = 0
    chosen: set[bytes] = set()
    for group in whole:
        if taken >= target:
            break
        chosen.add(group[0].fingerprint)
        taken += len(group) * group[0].size

    train: list[Segment] = []
    held: list[Segment] = []
    small = {group[0].fingerprint for group in whole}
    for file in files:
        if file.fingerprint in small:
            (held if file.fingerprint in chosen else train).append(Segment(file, 0, file.size))
        elif file is groups[file.fingerprint][0]:
            tail = int(held_out * file.size)
            front = file.size - tail - gap
            train += [Segment(file, 0, front)] if front > 0 else []
            held += [Segment(file, file.size - tail, tail)] if tail else []
    return train, held


def given_text(files: Sequence[DataFile], left_out: LeftOut) -> tuple[list[Segment], list[Segment]] | None:
    """The stretches to train on and those held out, or None where the names at the top of the folder say no such thing.

    They say it if all folders at the top are called after parts of a data set; without folders, if all files are.
    """
    tops = [file.name.partition("/") for file in files]
    part = [part_of(name if slash else name.partition(".")[0]) for name, slash, _ in tops]
    is_telling = [bool(slash) for _, slash, _ in tops] if any(slash for _, slash, _ in tops) else [True] * len(tops)
    told = {part for part, tells in zip(part, is_telling, strict=True) if tells}
    if None in told or TRAIN not in told or len(told) < 2:
        return None
    held_part = VALIDATION if VALIDATION in told else TEST
    held = [file for file, of in zip(files, part, strict=True) if of == held_part]
    copies = {file.fingerprint for file in held}
    train = []
    for file, of in zip(files, part, strict=True):
        if of == TRAIN and file.fingerprint not in copies:
            train.append(file)
        elif of == TRAIN:
            left_out.add(file.name, _COPY)
        elif of != held_part:
            left_out.add(file.name, f"neither of the part to train on nor of that for {held_part}")
    return [Segment(file, 0, file.size) for file in train], [Segment(file, 0, file.size) for file in held]


def split_images(
    labels: Sequence[int], keys: Sequence[bytes], classes: Sequence[str], held_out: float, *, source: str
) -> Tensor:
    """Which images are held out, bool [images]; images with equal `keys` are identical and stay together.

    Raises:
        DataError: a class cannot have an image on either side.
    """
    images: list[Counter[bytes]] = [Counter() for _ in classes]
    for label, key in zip(labels, keys, strict=True):
        images[label][key] += 1
    is_chosen: dict[bytes, bool] = {}
    for name, of_class in zip(classes, images, strict=True):
        held = sum(count for key, count in of_class.items() if is_chosen.get(key, False))
        trained = sum(count for key, count in of_class.items() if not is_chosen.get(key, True))
        undecided = sorted((key for key in of_class if key not in is_chosen), key=hash_order)
        target = max(1.0, held_out * of_class.total())
        for position, key in enumerate(undecided):
            is_last = position == len(undecided) - 1
            is_chosen[key] = held < target and not (is_last and trained == 0)
            held, trained = held + is_chosen[key] * of_class[key], trained + (not is_chosen[key]) * of_class[key]
        if not held or not trained:
            raise DataError(
                f"{source!r}: the {of_class.total()} image(s) of class {name!r} are all alike, or alike to those of "
                "another class; a class needs at least 2 different images, one of them held out."
            )
    return torch.tensor([is_chosen[key] for key in keys])


def given_images(
    files: Sequence[DataFile],
    labels: Sequence[int],
    is_held_out: Sequence[bool],
    classes: Sequence[str],
    left_out: LeftOut,
    *,
    source: str,
) -> tuple[list[DataFile], list[int], Tensor]:
    """Files, labels and sides of a split that the owner has made, without the images to train on that are held out too.

    Raises:
        DataError: nothing of a class remains to train on.
    """
    rows = list(zip(files, labels, is_held_out, strict=True))
    held = {file.fingerprint for file, _, is_held in rows if is_held}
    kept = [row for row in rows if row[2] or row[0].fingerprint not in held]
    for file, _, is_held in rows:
        if not is_held and file.fingerprint in held:
            left_out.add(file.name, _COPY)
    trained = {label for _, label, is_held in kept if not is_held}
    for label, name in enumerate(classes):
        if label not in trained:
            raise DataError(f"{source!r}: every image of class {name!r} to train on is also held out; give other ones.")
    return [row[0] for row in kept], [row[1] for row in kept], torch.tensor([row[2] for row in kept])
