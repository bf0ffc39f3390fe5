"""Images: the most common class, the nearest image, and logistic regression on pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from attensor.compare.references.reference import Reference
from attensor.data import ImageData

__all__ = ["image_references"]

# of the training images; of more, so many are taken, evenly spread
_MOST_IMAGES = 20_000
_MOST_PIXELS = 2**26
# of the regression: images x pixels x classes, and images of each class below which it says nothing
_MOST_WORK = 500_000_000
_FEWEST_OF_CLASS = 5
# weights of the squared coefficients, and steps of each, which begins where the one before it ended
_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)
_STEPS = 25
_IMAGES_AT_ONCE = 64

Batches = Iterator[tuple[Tensor, Tensor]]


def image_references(data: ImageData) -> list[Reference]:
    """Learned from the training side, scored on the test in accuracy.

    The decay of the regression is chosen on the selection, which must not be empty.

    Cost: below 20 s and 1 GB on one core, since of many images not all are taken.
    """
    pixels = data.image_shape[0] * data.image_shape[1] * data.image_shape[2]
    images, labels = data.training_images(min(_MOST_IMAGES, max(1, _MOST_PIXELS // pixels)))
    images = images.flatten(1)
    common = int(labels.bincount().argmax())
    nearest = _accuracy(lambda rows: labels[torch.cdist(rows, images).argmin(1)], _test(data))
    return [
        Reference("majority", "the most common class", _accuracy(lambda rows: torch.tensor(common), _test(data))),
        Reference("nearest", f"class of the nearest of {len(images)} training images, by pixels", nearest),
        _logistic(data, images, labels),
    ]


def _logistic(data: ImageData, images: Tensor, labels: Tensor) -> Reference:
    classes = len(data.classes)
    most = _MOST_WORK // (images.shape[1] * classes)
    title = f"logistic regression on the pixels of {min(most, len(images))} training images"
    if most < min(len(images), _FEWEST_OF_CLASS * classes):
        reason = f"{classes} classes are too many to fit in the time that references have"
        return Reference("logistic", "logistic regression on pixels", None, reason)
    chosen = torch.arange(min(most, len(images))) * len(images) // min(most, len(images))
    images, labels = images[chosen], labels[chosen]
    mean, scale = images.mean(0), images.std(0, correction=0).clamp(min=1e-3)
    table = torch.zeros(images.shape[1] + 1, classes, requires_grad=True)
    best, best_loss = table.detach().clone(), float("inf")
    for decay in _DECAYS:
        _fit(table, (images - mean) / scale, labels, decay)
        found = table.detach().clone()
        loss = sum(
            float(functional.cross_entropy(_scores(found, (rows - mean) / scale), own, reduction="sum"))
            for rows, own in _flat(data.selection_batches(_IMAGES_AT_ONCE))
        )
        if loss < best_loss:
            best, best_loss = found, loss
    score = _accuracy(lambda rows: _scores(best, (rows - mean) / scale).argmax(1), _test(data))
    return Reference("logistic", title, score)


def _fit(table: Tensor, images: Tensor, labels: Tensor, decay: float) -> None:
    """Minimise the mean cross-entropy and half of `decay` times the squared coefficients, in place."""
    optimizer = torch.optim.LBFGS([table], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(_scores(table, images), labels) + 0.5 * decay * table[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]


def _scores(table: Tensor, images: Tensor) -> Tensor:
    """[images, pixels] and coefficients [pixels + 1, classes], the last row of which is added: [images, classes]."""
    return torch.addmm(table[-1], images, table[:-1])


def _accuracy(predict: Callable[[Tensor], Tensor], batches: Batches) -> float:
    right = torch.cat([(predict(rows) == labels).double() for rows, labels in batches])
    return float(right.mean())


def _test(data: ImageData) -> Batches:
    return _flat(data.test_batches(_IMAGES_AT_ONCE))


def _flat(batches: Batches) -> Batches:
    return ((images.flatten(1), labels) for images, labels in batches)
