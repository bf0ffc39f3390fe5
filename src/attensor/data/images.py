"""Labelled images: a folder with a sub-folder for each class, or the bundled handwritten digits.

The split is stratified and depends on contents alone: in each class, groups of identical images are held out in the
order of a hash until the share is reached. Identical images never stand on both sides, even under different labels.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from attensor.data.decode import is_grey, read_image
from attensor.data.files import failure, find_files, generator, hash_order, inspect_file, locate, printable
from attensor.errors import DataError, require

__all__ = ["ImageData", "open_images"]

_KEEP_DECODED_BYTES = 256 * 2**20
_DEFAULT_SIZE = (32, 32)
_SYSTEM_FILES = frozenset({"Thumbs.db", "desktop.ini"})


class ImageData:
    """Images to train on and images held out.

    Attributes:
        kind: `"images"`.
        name: what the source is called in tables.
        classes: their names; a label is an index into them.
        train_images, held_out_images: number on either side.
        image_shape: channels, height, width.

    Args:
        name, classes, image_shape: as above.
        labels: int64 [images].
        fetch: indices -> uint8 [len(indices), channels, height, width].
        is_held_out: bool [images].
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
        is_held_out: Tensor,
    ) -> None:
        self.name, self.classes, self.image_shape = name, list(classes), image_shape
        self._labels, self._fetch = labels, fetch
        self._train = (~is_held_out).nonzero().squeeze(1)
        self._held_out = is_held_out.nonzero().squeeze(1)
        self.train_images, self.held_out_images = len(self._train), len(self._held_out)
        self._epoch_order = functools.lru_cache(maxsize=4)(self._shuffle)

    def batch(self, step: int, *, seed: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Training images: each once in an epoch, shuffled anew for the next; a pure function of the arguments.

        Returns:
            images float32 [batch_size, channels, height, width] in [-1, 1]; labels int64 [batch_size].
        """
        positions = range(step * batch_size, (step + 1) * batch_size)
        places = [divmod(position, self.train_images) for position in positions]
        return self._load(self._train[[int(self._epoch_order(seed, epoch)[i]) for epoch, i in places]])

    def held_out_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All held-out images once, in a fixed order; the last batch may be smaller."""
        return (self._load(indices) for indices in torch.split(self._held_out, batch_size))

    def _shuffle(self, seed: int, epoch: int) -> Tensor:
        return torch.randperm(self.train_images, generator=generator(seed, epoch))

    def _load(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._fetch(indices.tolist()).float() / 127.5 - 1, self._labels[indices]


def open_images(
    source: str | os.PathLike[str], *, image_size: int | tuple[int, int] | None, held_out: float = 0.2
) -> ImageData:
    """Images with labels, all brought to one size; grey if every file is grey, else RGB.

    Args:
        source: a folder with a sub-folder for each class, searched to any depth; or `"digits"`: 1797 handwritten
            digits of 8 x 8 cells that come with scikit-learn.
        image_size: (height, width), or one number for both; None: 8 for the digits, 32 for a folder. An image is
            scaled to cover this size and its middle is kept.
        held_out: share of each class that is held out, at least one image.
    Raises:
        DataError: missing, unreadable, empty, a broken image or something that is none, fewer than two classes, or a
            class without two different images; names the file or folder.
        MissingExtraError: Pillow or scikit-learn is not installed.
    Cost: headers and up to 128 KiB of each file are read. Up to 256 MiB of decoded images are kept in memory (and
        all are decoded at once, so that a broken one shows); more are decoded batch by batch.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"open_images: held_out must lie between 0 and 1, got {held_out}.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise ValueError(f"open_images: image_size must be positive, got {image_size}.")
    if source == "digits":
        return _open_digits(size, held_out)
    return _open_folder(locate(source), size or _DEFAULT_SIZE, held_out)


def _open_digits(size: tuple[int, int] | None, held_out: float) -> ImageData:
    bunch = require("sklearn.datasets", purpose="the digits").load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] * (255 / 16)
    if size is not None and size != (8, 8):
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    pixels = images.round().to(torch.uint8)
    names = [str(name) for name in bunch.target_names.tolist()]
    labels = bunch.target.tolist()
    keys = [bytes(image.flatten().tolist()) for image in pixels]
    return ImageData(
        "digits",
        names,
        (1, *pixels.shape[2:]),
        labels=torch.tensor(labels),
        fetch=pixels.__getitem__,
        is_held_out=split_images(labels, keys, names, held_out, source="digits"),
    )


def _open_folder(folder: Path, size: tuple[int, int], held_out: float) -> ImageData:
    classes, paths, labels = _list_classes(folder)
    keys = [inspect_file(path, path.name).fingerprint for path in paths]
    coloured = sum(not is_grey(path) for path in paths)  # a sum, not any(): every header is checked
    channels = 3 if coloured else 1
    fetch: Callable[[Sequence[int]], Tensor] = functools.partial(_decode, paths, channels, size)
    if len(paths) * channels * size[0] * size[1] <= _KEEP_DECODED_BYTES:
        fetch = fetch(range(len(paths))).__getitem__
    return ImageData(
        printable(folder),
        classes,
        (channels, *size),
        labels=torch.tensor(labels),
        fetch=fetch,
        is_held_out=split_images(labels, keys, classes, held_out, source=str(folder)),
    )


def _decode(paths: Sequence[Path], channels: int, size: tuple[int, int], indices: Sequence[int]) -> Tensor:
    return torch.stack([read_image(paths[i], channels=channels, size=size) for i in indices])


def _list_classes(folder: Path) -> tuple[list[str], list[Path], list[int]]:
    layout = "Images need a folder with a sub-folder for each class."
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder. {layout}")
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise failure(folder, error) from error
    folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
    if len(folders) < 2:
        raise DataError(f"{str(folder)!r} has {len(folders)} sub-folder(s), at least 2 classes are needed. {layout}")
    paths, labels = [], []
    for label, folder_of_class in enumerate(folders):
        found = [path for path, _ in find_files(folder_of_class) if path.name not in _SYSTEM_FILES]
        if len(found) < 2:
            raise DataError(
                f"{str(folder_of_class)!r} has {len(found)} image(s), links and hidden files left out; "
                "a class needs at least 2, one of them held out."
            )
        paths += found
        labels += [label] * len(found)
    return [printable(f) for f in folders], paths, labels


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
