"""Labelled images of any number and size to train on, decoded one by one when they are wanted.

A folder is listed and not read: of 50,000 files only the names are kept. What is held out is what the folder says
(`val`, `test`), or else whole files of each class in the order of a hash of their names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.data.classes import list_images
from attensor.data.decode import Depth, decode_image, measure_depth
from attensor.data.files import hash_order, locate, printable
from attensor.data.images import load_digits
from attensor.data.splits import SELECTION_SIDE, TEST_SIDE, TRAIN_SIDE, Shares
from attensor.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageSource", "open_image_source"]

_PROBED = 32  # files that are opened to learn on which scale a folder's deep grey images are
_DIGITS_TEST = 0.2


@dataclass(frozen=True)
class ImageSource:
    """Images by number, each of its own size, in colour.

    Attributes:
        name: what the source is called in tables.
        classes: their names; a label is an index into them.
        labels: int64 [images].
        train, held_out: int64, numbers of the images that are trained on, and of those that are scored while training.
        test: numbers of a third part that is scored once, at the end; empty where the folder has none.
        open: number -> the image in mode RGB; raises DataError for a broken one.
        name_of: number -> its file, for messages.
        fingerprint: SHA-256 of the names, classes and parts, to know the source again; contents are not read.
        notes: what was left out, and who made the split; sentences for the user.
        is_of_files: whether `open` reads and decodes a file.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    train: Tensor
    held_out: Tensor
    test: Tensor
    open: Callable[[int], Image]
    name_of: Callable[[int], str]
    fingerprint: str
    notes: tuple[str, ...] = ()
    is_of_files: bool = True


def open_image_source(source: str | os.PathLike[str], *, held_out: float = 0.1) -> ImageSource:
    """Images to train on.

    Args:
        source: a folder with a sub-folder for each class, searched to any depth, or with `train` and `val` (or `test`)
            and the classes in each; or `"digits"`, of which a fifth is held out.
        held_out: share of the files of each class that are held out where the folder does not say it, at least one.
    Raises:
        DataError: missing, no images, fewer than two classes, parts that do not fit together; names the folder.
        ValueError: a share outside of 0 to 1.
        MissingExtraError: Pillow or scikit-learn is not installed.
    Cost: a listing of the folder, 25 us a file, and 32 files opened.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"open_image_source: held_out must be a share between 0 and 1, got {held_out}.")
    if source == "digits":
        return _open_digits()
    require("PIL.Image", purpose="reading images")
    return _open_folder(locate(source), held_out)


def _open_digits() -> ImageSource:
    pixels, labels, names, sides = load_digits(None, Shares(0.0, _DIGITS_TEST))
    digits = _Digits(pixels)
    return ImageSource(
        name="digits",
        classes=tuple(names),
        labels=torch.tensor(labels),
        train=(sides == TRAIN_SIDE).nonzero().squeeze(1),
        held_out=(sides == TEST_SIDE).nonzero().squeeze(1),
        test=torch.empty(0, dtype=torch.int64),
        open=digits.open,
        name_of=digits.name_of,
        fingerprint=hashlib.sha256(bytes(pixels.flatten().tolist())).hexdigest(),
        is_of_files=False,
    )


def _open_folder(folder: Path, share: float) -> ImageSource:
    listing = list_images(folder)
    names = [path.relative_to(folder).as_posix() for path in listing.paths]
    labels = torch.tensor(listing.labels)
    if listing.sides is None:
        sides, how = _sides_by_name(names, labels, share), f"{share:.0%} of each class are held out, by their names."
    else:
        sides, how = torch.tensor(listing.sides), "The folder says what is held out."
    if not (sides == TRAIN_SIDE).any() or (sides == TRAIN_SIDE).all():
        raise DataError(f"{str(folder)!r} leaves nothing to train on, or nothing held out; put images into both parts.")
    has_three = bool((sides == SELECTION_SIDE).any())
    files = _Files(folder, names, _probe(listing.paths))
    digest = hashlib.sha256(repr((listing.classes, sides.tolist())).encode())
    digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
    return ImageSource(
        name=printable(folder),
        classes=tuple(listing.classes),
        labels=labels,
        train=(sides == TRAIN_SIDE).nonzero().squeeze(1),
        held_out=(sides == (SELECTION_SIDE if has_three else TEST_SIDE)).nonzero().squeeze(1),
        test=(sides == TEST_SIDE).nonzero().squeeze(1) if has_three else torch.empty(0, dtype=torch.int64),
        open=files.open,
        name_of=files.name_of,
        fingerprint=digest.hexdigest(),
        notes=(how, *listing.left_out.sentences()),
    )


def _sides_by_name(names: Sequence[str], labels: Tensor, share: float) -> Tensor:
    """In each class the first files by the hash of their names are held out: a new file moves no other."""
    sides = torch.full((len(names),), TRAIN_SIDE)
    for label in set(labels.tolist()):
        members = sorted((labels == label).nonzero().squeeze(1).tolist(), key=lambda i: hash_order(names[i]))
        sides[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = TEST_SIDE
    return sides


def _probe(paths: Sequence[Path]) -> Depth:
    """The scale of deep grey images, by some of the folder; broken ones are met again when they are wanted."""
    step = max(1, len(paths) // _PROBED)
    readable = [path for path in paths[::step][:_PROBED] if _is_readable(path)]
    if not readable:
        raise DataError(
            f"{str(paths[0].parent.parent)!r}: none of {min(len(paths), _PROBED)} images that were tried can be read, "
            f"the first is {str(paths[0])!r}. Are they images of another format, or was a copy cut short?"
        )
    depth = measure_depth(readable)
    return Depth(3, depth.bits, depth.white)


def _is_readable(path: Path) -> bool:
    try:
        measure_depth([path])
    except DataError:
        return False
    return True


@dataclass(frozen=True)
class _Digits:
    """Small grey images in memory; a class, so that it can travel to another process."""

    pixels: Tensor

    def name_of(self, number: int) -> str:
        """They have no files."""
        return f"digit {number}"

    def open(self, number: int) -> Image:
        """One in colour."""
        pillow: Any = require("PIL.Image", purpose="reading images")
        grey: Image = pillow.fromarray(self.pixels[number, 0].numpy())
        return grey.convert("RGB")


class _Files:
    """Images of a folder, whose names lie in one tensor: processes share it, and counting references copies nothing."""

    def __init__(self, folder: Path, names: Sequence[str], depth: Depth) -> None:
        self.folder, self.depth = folder, depth
        encoded = [os.fsencode(name) for name in names]
        self._text = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
        self._ends = torch.tensor([len(name) for name in encoded]).cumsum(0)

    def name_of(self, number: int) -> str:
        """Relative to the folder."""
        start = int(self._ends[number - 1]) if number else 0
        return os.fsdecode(self._text[start : int(self._ends[number])].numpy().tobytes())

    def open(self, number: int) -> Image:
        """Decode one."""
        return decode_image(self.folder / self.name_of(number), depth=self.depth)
