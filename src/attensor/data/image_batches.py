"""Batches of images as a pure function of their number, made by worker processes.

The order of an epoch, the crops and the mixing of batch n depend on the seed and n alone: a run that is resumed in the
middle of an epoch, or with another number of workers, sees the same batches bit for bit.
"""

from __future__ import annotations

import random
import signal
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attensor.data.augment import Views, plain_view, random_view
from attensor.data.files import generator
from attensor.data.image_source import ImageSource
from attensor.data.mixing import Mixing, mix, soft_targets
from attensor.errors import DataError

__all__ = ["Batch", "HeldOutBatches", "TrainingBatches", "batches_from"]

_TRIES = 20


class Batch(NamedTuple):
    """Images float32 [B, 3, height, width]; targets float32 [B, K] or labels int64 [B]; files that were broken."""

    images: Tensor
    targets: Tensor
    broken: tuple[str, ...]


class Batches(Protocol):
    """What is asked for a batch by its number."""

    def __getitem__(self, number: int) -> Batch:
        """The batch of that number."""


class TrainingBatches:
    """Random views of the images that are trained on: each once in an epoch, shuffled anew for the next.

    In the place of a broken file stands another one, drawn at random.

    Args:
        source: the images.
        size: height and width.
        views, mixing: what is done to images, and to batches.
        smoothing: of the targets.
        batch_size: images in a batch.
        seed: of everything.
    """

    def __init__(
        self,
        source: ImageSource,
        size: tuple[int, int],
        *,
        views: Views,
        mixing: Mixing,
        smoothing: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self._source, self._size, self._views, self._mixing = source, size, views, mixing
        self._smoothing, self._batch_size, self._seed = smoothing, batch_size, seed
        self._orders: dict[int, Tensor] = {}  # of the latest epochs

    def __getitem__(self, number: int) -> Batch:
        """The batch of that number."""
        images, labels, broken = [], [], []
        for position in range(number * self._batch_size, (number + 1) * self._batch_size):
            image, label, unread = self._view(position)
            images.append(image)
            labels.append(label)
            broken += unread
        targets = soft_targets(torch.tensor(labels), len(self._source.classes), self._smoothing)
        chance = random.Random(repr((self._seed, "batch", number)))
        return Batch(*mix(torch.stack(images), targets, self._mixing, chance), tuple(broken))

    def _view(self, position: int) -> tuple[Tensor, int, list[str]]:
        epoch, place = divmod(position, len(self._source.train))
        chance = random.Random(repr((self._seed, "image", position)))
        index = int(self._order(epoch)[place])
        broken: list[str] = []
        for _ in range(_TRIES):
            try:
                image = self._source.open(index)
            except DataError:
                broken.append(self._source.name_of(index))
                index = int(self._source.train[chance.randrange(len(self._source.train))])
            else:
                return random_view(image, self._size, self._views, chance), int(self._source.labels[index]), broken
        raise DataError(
            f"{self._source.name}: {_TRIES} images in a row cannot be read, the last is {broken[-1]!r}. Is the disk "
            "there, are they images?"
        )

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            order = torch.randperm(len(self._source.train), generator=generator(self._seed, epoch))
            kept = dict(list(self._orders.items())[-1:])
            self._orders = kept | {epoch: self._source.train[order]}
        return self._orders[epoch]


class HeldOutBatches:
    """Plain views of images, each once, in their order; broken ones are left out.

    Args:
        source: the images.
        indices: which of them.
        size: height and width.
        views: normalisation, and how much of an image is kept.
        batch_size: images in a batch; the last may be smaller.
    """

    def __init__(
        self, source: ImageSource, indices: Tensor, size: tuple[int, int], *, views: Views, batch_size: int
    ) -> None:
        self._source, self._size, self._views = source, size, views
        self._parts = torch.split(indices, batch_size)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> Batch:
        """The batch of that number; it may be empty."""
        images, labels, broken = [], [], []
        for index in self._parts[number].tolist():
            try:
                image = self._source.open(index)
            except DataError:
                broken.append(self._source.name_of(index))
            else:
                images.append(plain_view(image, self._size, self._views))
                labels.append(int(self._source.labels[index]))
        stacked = torch.stack(images) if images else torch.empty(0, 3, *self._size)
        return Batch(stacked, torch.tensor(labels, dtype=torch.int64), tuple(broken))


def batches_from(batches: Batches, numbers: Sequence[int], *, workers: int) -> Iterator[Batch]:
    """The batches of these numbers in turn, made ahead of time by worker processes; by this one if `workers` is 0.

    Raises:
        DataError: as of the batches.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
        loader = DataLoader(
            _Guarded(batches),
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # else it draws from that of the model
        )
        ahead = iter(loader)
    for made in ahead:
        if isinstance(made, DataError):
            raise made
        yield made


class _Guarded(Dataset[Any]):
    """Returns an error instead of raising it: a worker would hide it in a report of many lines."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> Batch | DataError:
        try:
            return self._batches[number]
        except DataError as error:
            return error


def _as_it_is(made: Any) -> Any:
    return made


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal, and what it means is for the first of them to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
