"""Views of an image: a random one to train on, and the plain one that is scored.

    image -> crop, resize -> flip -> RandAugment -> (pixels - mean) / std -> random erasing

Crops are cut and resized by Pillow, with antialiasing and before anything else is computed of an image of any size;
RandAugment and erasing are kornia's. Everything random comes from the generator that is given.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.errors import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGENET_PIXELS", "Pixels", "Views", "plain_view", "random_view"]

Box = tuple[float, float, float, float]

_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10  # as in torchvision: then the largest crop of an allowed ratio
_MOST_MAGNITUDE = 29  # kornia counts up to 30, and excludes it


@dataclass(frozen=True)
class Pixels:
    """What is subtracted from pixels in 0 to 1, and what they are divided by, for each colour."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


IMAGENET_PIXELS = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Views:
    """How images are changed.

    Attributes:
        pixels: their normalisation.
        crop_scale: least share of the image's area that a random crop keeps; 1 takes what `plain_view` takes.
        flip: probability of a mirror image.
        rand_augment: operations and their magnitude in kornia's 0 to 30; None leaves it out.
        erasing: probability of a rectangle of the mean colour.
        kept: share of the scaled image's side that is kept of images that are scored.
    Raises:
        ValueError: a share or probability outside of 0 to 1, or a magnitude outside of 1 to 29.
    """

    pixels: Pixels = IMAGENET_PIXELS
    crop_scale: float = 0.08
    flip: float = 0.5
    rand_augment: tuple[int, int] | None = None
    erasing: float = 0.0
    kept: float = 0.95

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("crop_scale", "flip", "erasing", "kept"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (value == 0 and name in ("crop_scale", "kept")):
                raise ValueError(f"Views: {name} must be a share from 0 to 1, got {value}.")
        if self.rand_augment is not None:
            count, magnitude = self.rand_augment
            if count < 1 or not 1 <= magnitude <= _MOST_MAGNITUDE:
                raise ValueError(
                    f"Views: rand_augment must be a number of operations and a magnitude from 1 to {_MOST_MAGNITUDE}, "
                    f"got {self.rand_augment}."
                )

    @property
    def needs_kornia(self) -> bool:
        """Whether an operation of kornia's is among them."""
        return self.rand_augment is not None or self.erasing > 0


def random_view(image: Image, size: tuple[int, int], views: Views, chance: random.Random) -> Tensor:
    """A random view to train on.

    Args:
        image: in mode RGB.
        size: height and width of the view.
        views: what is done.
        chance: where everything random comes from; the state of torch's generator is not touched.
    Returns:
        float32 [3, height, width].
    Raises:
        MissingExtraError: kornia is needed and not installed.
    """
    if views.crop_scale < 1:
        box = _random_box(image.width, image.height, size[1] / size[0], views.crop_scale, chance)
        pixels = _as_tensor(image.resize((size[1], size[0]), _filter("BICUBIC"), box=box))
    else:
        pixels = _fitted(image, size, views.kept)
    if chance.random() < views.flip:
        pixels = pixels.flip(-1)
    if views.rand_augment is not None:
        pixels = _by_kornia(_rand_augment(*views.rand_augment), pixels, chance)
    pixels = _normalised(pixels, views.pixels)
    if chance.random() < views.erasing:
        pixels = _by_kornia(_erasing(), pixels, chance)
    return pixels


def plain_view(image: Image, size: tuple[int, int], views: Views) -> Tensor:
    """The middle of the image, scaled so that `views.kept` of it fills `size`: float32 [3, height, width]."""
    return _normalised(_fitted(image, size, views.kept), views.pixels)


def _random_box(width: int, height: int, shape: float, least: float, chance: random.Random) -> Box:
    """A part of the area between `least` and 1, of a ratio up to 4 : 3 beside that of the view; else the middle."""
    low, high = (math.log(ratio * shape) for ratio in _RATIOS)
    for _ in range(_TRIES):
        area = width * height * chance.uniform(least, 1.0)
        ratio = math.exp(chance.uniform(low, high))
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            left, top = chance.uniform(0, width - across), chance.uniform(0, height - down)
            return left, top, left + across, top + down
    across = min(width, height * _RATIOS[1] * shape)
    down = min(height, width / (_RATIOS[0] * shape))
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down


def _fitted(image: Image, size: tuple[int, int], kept: float) -> Tensor:
    operations = require("PIL.ImageOps", purpose="reading images")
    # `fit` cuts so much off every side before it cuts the shape
    fitted = operations.fit(image, (size[1], size[0]), method=_filter("BICUBIC"), bleed=(1 - kept) / 2)
    return _as_tensor(fitted)


def _filter(name: str) -> Any:
    return getattr(require("PIL.Image", purpose="reading images").Resampling, name)


def _as_tensor(image: Image) -> Tensor:
    """[3, height, width] in 0 to 1."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, 3).movedim(-1, 0).float() / 255


def _normalised(pixels: Tensor, how: Pixels) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    return (pixels - mean) / std


def _by_kornia(operation: Any, pixels: Tensor, chance: random.Random) -> Tensor:
    """Of one image; kornia draws from torch's generator, which is given back as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(chance.getrandbits(63))
        out: Tensor = operation(pixels[None])[0]
    return out


@functools.cache
def _rand_augment(count: int, magnitude: int) -> Any:
    augmentation = require("kornia.augmentation", purpose="RandAugment")
    return augmentation.auto.RandAugment(n=count, m=magnitude)


@functools.cache
def _erasing() -> Any:
    return require("kornia.augmentation", purpose="random erasing").RandomErasing(scale=(0.02, 0.33), p=1.0)
