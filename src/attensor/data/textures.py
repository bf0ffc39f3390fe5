"""Generated images whose class no part of them tells: two places must be compared. Nothing to download.

`SharedTextures`: the four quadrants are covered by gratings; the class is how many of them are of the same kind.
`MarkedCorners`: two corners have a coloured mark; the class is whether these have the same colour, and which way waves
go through the image, which any part of it tells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from attensor.data.files import generator

__all__ = ["MarkedCorners", "SharedTextures"]

_HELD_OUT = 1000
_DIRECTIONS, _WAVELENGTHS = 4, (4.0, 8.0)  # kinds of gratings: each direction with each length in pixels


class _Generated:
    """Images that are pure functions of step and seed, and held-out ones that stay the same."""

    classes: ClassVar[tuple[str, ...]]
    channels: ClassVar[int]

    def __init__(self, *, image_size: int = 32, noise: float = 0.15) -> None:
        if image_size < 16 or image_size % 4:
            raise ValueError(
                f"{type(self).__name__}: image_size must be a multiple of 4 and at least 16, got {image_size}."
            )
        self._side, self._noise = image_size, noise
        self.image_shape = (self.channels, image_size, image_size)

    def batch(self, step: int, *, seed: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Training images of one step: a pure function of the arguments.

        Returns:
            images float32 [batch_size, channels, height, width]; labels int64 [batch_size].
        """
        return self._noisy(batch_size, generator(seed, step, batch_size))

    def held_out_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A thousand images that training does not meet; they change with the batch size."""
        for first in range(0, _HELD_OUT, batch_size):
            yield self._noisy(min(batch_size, _HELD_OUT - first), generator(-1, first, batch_size))

    def _noisy(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self._draw(count, random)
        return images + self._noise * torch.randn(images.shape, generator=random), labels

    def _draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images without noise, and their classes."""
        raise NotImplementedError


class SharedTextures(_Generated):
    """How many of the four quadrants of an image share a texture: none, two, two and two, three or all.

    There are eight kinds of gratings; each quadrant has a phase of its own.

    Attributes:
        classes: names of the five ways.
        image_shape: channels, height, width of the images.

    Args:
        image_size: side of the images in pixels, a multiple of 4.
        noise: standard deviation of the Gaussian noise on every pixel; gratings go from -1 to 1.
    Raises:
        ValueError: another size.
    """

    classes = ("all different", "two alike", "two and two alike", "three alike", "all alike")
    channels = 1
    # for each class which of an image's kinds are in the quadrants, in any order
    _ways = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])

    def _draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(self._ways), (count,), generator=random)
        kinds = torch.rand(count, _DIRECTIONS * len(_WAVELENGTHS), generator=random).argsort(1)[:, :4]  # distinct
        order = torch.rand(count, 4, generator=random).argsort(1)
        of_quadrants = kinds.gather(1, self._ways[labels]).gather(1, order)  # [count, 4]
        quadrants = torch.unflatten(gratings(of_quadrants.flatten(), self._side // 2, random), 0, (count, 2, 2))
        return quadrants.movedim(3, 2).flatten(3, 4).flatten(1, 2)[:, None], labels


class MarkedCorners(_Generated):
    """Whether the two marked corners have the same colour, and the texture of the image: four classes.

    A mark is a square of one of four colours, a quarter of the image's side wide, in two of the corners; half of the
    images have two of the same colour. Waves go down or to the right through the whole image.

    Attributes:
        classes: "same" or "different", and "horizontal" or "vertical".
        image_shape: channels, height, width of the images.

    Args:
        image_size: side of the images in pixels, a multiple of 4.
        noise: standard deviation of the Gaussian noise on every pixel.
    Raises:
        ValueError: another size.
    """

    classes = tuple(f"{one}, {other}" for one in ("different", "same") for other in ("horizontal", "vertical"))
    channels = 3
    _colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])

    def _draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        is_same, is_vertical = torch.randint(2, (2, count), generator=random)
        first = torch.randint(4, (count,), generator=random)
        second = (first + torch.randint(1, 4, (count,), generator=random) * (1 - is_same)) % 4
        places = torch.rand(count, 4, generator=random).argsort(1)[:, :2].T  # two corners of four
        images = 0.3 * gratings(2 * is_vertical, self._side, random)[:, None].repeat(1, 3, 1, 1)
        wide = self._side // 4
        corners = list(itertools.product((slice(0, wide), slice(-wide, None)), repeat=2))
        for colours, of_images in ((first, places[0]), (second, places[1])):
            for image, colour, corner in zip(images, self._colours[colours], of_images.tolist()):
                image[:, *corners[corner]] = colour[:, None, None]
        return images, 2 * is_same + is_vertical


def gratings(kinds: Tensor, side: int, random: torch.Generator) -> Tensor:
    """Waves from -1 to 1 with a random phase: [N] of kinds 0 to 7 to [N, side, side].

    Kinds 0 to 3 go down, along a diagonal, to the right and along the other diagonal with four pixels to a wave; 4 to 7
    with eight.
    """
    angle = math.pi / _DIRECTIONS * (kinds % _DIRECTIONS)
    frequency = 2 * math.pi / torch.tensor(_WAVELENGTHS)[kinds // _DIRECTIONS]
    phase = 2 * math.pi * torch.rand(len(kinds), generator=random)
    cells = torch.arange(side, dtype=torch.float32)
    along = angle.cos()[:, None, None] * cells[:, None] + angle.sin()[:, None, None] * cells
    return (frequency[:, None, None] * along + phase[:, None, None]).cos()
