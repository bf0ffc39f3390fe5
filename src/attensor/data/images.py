"""Labelled images: a folder with a sub-folder for each class, or bundled handwritten digits; split by `splits`."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from attensor.data.classes import list_images
from attensor.data.decode import Depth, measure_depth, read_image
from attensor.data.files import DataFile, contents, failure, generator, inspect_file, locate, printable
from attensor.data.splits import (
    SELECTION_SIDE,
    TEST_SIDE,
    TRAIN_SIDE,
    Shares,
    given_images,
    how_given,
    split_images,
)
from attensor.errors import require

__all__ = ["ImageData", "load_digits", "open_images"]

_KEEP_DECODED_BYTES = 256 * 2**20
_DEFAULT_SIZE = (32, 32)


class ImageData:
    """Images to train on, to choose learning rates on (the selection), and to test on.

    Attributes:
        kind: `"images"`.
        name: what the source is called in tables.
        classes: their names; a label is an index into them.
        train_images, selection_images, test_images: number on each side.
        image_shape: channels, height, width.
        fingerprint: SHA-256 of the names and contents of all images, see `contents`.
        notes: what was left out, and who made the split; sentences for the user.

    Args:
        name, classes, image_shape: as above.
        labels: int64 [images].
        fetch: indices -> uint8 [len(indices), channels, height, width].
        sides: int64 [images], see `splits`.
        fingerprint, notes: as above.
    """

    kind = "images"

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        image_shape: tuple[int, int, int],
        *,
        labels: Tensor,
        fetch: Callable[[Sequence[int]], Tensor],
        sides: Tensor,
        fingerprint: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.classes, self.image_shape = name, list(classes), image_shape
        self.fingerprint, self.notes = fingerprint, tuple(notes)
        self._labels, self._fetch = labels, fetch
        self._of_side = {side: (sides == side).nonzero().squeeze(1) for side in (TRAIN_SIDE, SELECTION_SIDE, TEST_SIDE)}
        self._train = self._of_side[TRAIN_SIDE]
        self.train_images, self.selection_images, self.test_images = map(len, self._of_side.values())
        self._epoch_order = functools.lru_cache(maxsize=4)(self._shuffle)

    def batch(self, step: int, *, seed: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Training images: each once in an epoch, shuffled anew for the next; a pure function of the arguments.

        Returns:
            images float32 [batch_size, channels, height, width] in [-1, 1]; labels int64 [batch_size].
        """
        positions = range(step * batch_size, (step + 1) * batch_size)
        places = [divmod(position, self.train_images) for position in positions]
        return self._load(self._train[[int(self._epoch_order(seed, epoch)[i]) for epoch, i in places]])

    def training_images(self, limit: int) -> tuple[Tensor, Tensor]:
        """All images to train on with their labels; of more than `limit`, so many, evenly spread.

        Returns:
            As of `batch`.
        """
        count = min(limit, self.train_images)
        return self._load(self._train[torch.arange(count) * self.train_images // count])

    def selection_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of the selection once, in a fixed order; the last batch may be smaller."""
        return self._batches_of(SELECTION_SIDE, batch_size)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of the test once, in a fixed order; the last batch may be smaller."""
        return self._batches_of(TEST_SIDE, batch_size)

    def _batches_of(self, side: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return (self._load(indices) for indices in torch.split(self._of_side[side], batch_size))

    def _shuffle(self, seed: int, epoch: int) -> Tensor:
        return torch.randperm(self.train_images, generator=generator(seed, epoch))

    def _load(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._fetch(indices.tolist()).float() / 127.5 - 1, self._labels[indices]


def open_images(
    source: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None,
    selection: float = 0.1,
    test: float = 0.2,
) -> ImageData:
    """Images with labels, all brought to one size; grey if every file is grey, else RGB.

    Args:
        source: a folder with a sub-folder for each class, searched to any depth, or with `train` and `val` (or `test`)
            and the classes in each; or `"digits"`: 1797 handwritten digits of 8 x 8 cells that come with scikit-learn.
            Files without the suffix of an image are left out.
        image_size: (height, width), or one number for both; None: 8 for the digits, 32 for a folder. An image is
            scaled to cover this size and its middle is kept.
        selection, test: shares of each class that are set apart, at least one image each, where the folder does not say
            it; a selection of 0 leaves it out.
    Raises:
        DataError: missing, unreadable, empty, a broken image, fewer than two classes, a class without an image
            for every side, parts of a data set that do not fit together, or images of deep grey without a common scale
            (see `measure_depth`); names the file or folder.
        MissingExtraError: Pillow or scikit-learn is not installed.
    Cost: headers and, up to 1 GiB in all, the whole of each file are read (see `contents`). Up to 256 MiB of decoded
        images are kept in memory (and all are decoded at once, so that a broken one shows); more are decoded batch by
        batch.
    """
    shares = Shares(selection, test)
    size = image_size if image_size is None or isinstance(image_size, tuple) else (image_size, image_size)
    if size is not None and min(size) < 1:
        raise ValueError(f"open_images: image_size must be positive, got {image_size}.")
    if source == "digits":
        return _open_digits(size, shares)
    return _open_folder(locate(source), size or _DEFAULT_SIZE, shares)


def _open_digits(size: tuple[int, int] | None, shares: Shares) -> ImageData:
    pixels, labels, names, sides = load_digits(size, shares)
    return ImageData(
        "digits",
        names,
        (1, *pixels.shape[2:]),
        labels=torch.tensor(labels),
        fetch=pixels.__getitem__,
        sides=sides,
        fingerprint=hashlib.sha256(b"".join(bytes(image.flatten().tolist()) for image in pixels)).hexdigest(),
    )


def load_digits(size: tuple[int, int] | None, shares: Shares) -> tuple[Tensor, list[int], list[str], Tensor]:
    """scikit-learn's digits: uint8 [1797, 1, height, width], their labels, the names of the classes, and their sides.

    Args:
        size: height and width; None for 8 x 8.
        shares: what is set apart; the test depends on its own share alone.
    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    bunch = require("sklearn.datasets", purpose="the digits").load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] * (255 / 16)
    if size is not None and size != (8, 8):
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    pixels = images.round().to(torch.uint8)
    names = [str(name) for name in bunch.target_names.tolist()]
    labels = bunch.target.tolist()
    keys = [bytes(image.flatten().tolist()) for image in pixels]
    return pixels, labels, names, split_images(labels, keys, names, shares, source="digits")


def _open_folder(folder: Path, size: tuple[int, int], shares: Shares) -> ImageData:
    listing = list_images(folder)
    files = [inspect_file(path, path.relative_to(folder).as_posix()) for path in listing.paths]
    depth, classes = measure_depth(listing.paths), listing.classes
    how: tuple[str, ...] = ()
    if listing.sides is None:
        labels, keys = listing.labels, [file.fingerprint for file in files]
        sides = split_images(labels, keys, classes, shares, source=str(folder))
    else:
        files, labels, sides = given_images(
            files, listing.labels, listing.sides, classes, shares, listing.left_out, source=str(folder)
        )
        is_cut = bool(shares.selection) and SELECTION_SIDE not in listing.sides
        how = (how_given("top of the folder", is_selection_cut=is_cut),)
    fetch: Callable[[Sequence[int]], Tensor] = functools.partial(_decode, files, depth, size)
    if len(files) * depth.channels * size[0] * size[1] <= _KEEP_DECODED_BYTES:
        fetch = fetch(range(len(files))).__getitem__
    return ImageData(
        printable(folder),
        classes,
        (depth.channels, *size),
        labels=torch.tensor(labels),
        fetch=fetch,
        sides=sides,
        fingerprint=contents(files),
        notes=(*how, *listing.left_out.sentences()),
    )


def _decode(files: Sequence[DataFile], depth: Depth, size: tuple[int, int], indices: Sequence[int]) -> Tensor:
    images = []
    for file in (files[i] for i in indices):
        images.append(read_image(file.path, depth=depth, size=size))
        try:
            file.check(file.path.stat())
        except OSError as error:
            raise failure(file.path, error) from error
    return torch.stack(images)
