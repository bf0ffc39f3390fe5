"""Digits somewhere in a noisy image: what a classifier must find before it can name it. Nothing to download."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attensor.data.files import generator
from attensor.data.images import open_images

__all__ = ["ClutteredDigits"]


class ClutteredDigits:
    """The bundled handwritten digits, enlarged and put at random places of a larger image full of noise.

    A training image is placed anew each time it is drawn; a held-out one has one place and one noise for good. Both are
    pure functions of the arguments, so that runs repeat and resume.

    Attributes:
        classes: names of the ten digits.
        image_shape: channels, height, width of the images.

    Args:
        image_size: side of the images in pixels.
        digit_size: side of the digits in them; 16 is twice that of the source.
        noise: standard deviation of the Gaussian noise on every pixel, when ink is 1 and paper 0.
    Raises:
        ValueError: the digits do not fit the image.
        MissingExtraError: scikit-learn, which brings the digits, is not installed.
    """

    def __init__(self, *, image_size: int = 32, digit_size: int = 16, noise: float = 0.15) -> None:
        if not 0 < digit_size <= image_size:
            raise ValueError(f"ClutteredDigits: digit_size {digit_size} does not fit image_size {image_size}.")
        self._digits = open_images("digits", image_size=digit_size, selection=0.0)
        self._margin, self._noise = image_size - digit_size, noise
        self.classes = self._digits.classes
        self.image_shape = (1, image_size, image_size)

    def batch(self, step: int, *, seed: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Training images of one step: a pure function of the arguments.

        Returns:
            images float32 [batch_size, 1, height, width]; labels int64 [batch_size].
        """
        digits, labels = self._digits.batch(step, seed=seed, batch_size=batch_size)
        return self._scatter(digits, generator(seed, step, batch_size)), labels

    def held_out_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All held-out digits once, each at its place; the last batch may be smaller.

        Places and noise are drawn batch by batch, so that they change with the batch size.
        """
        for index, (digits, labels) in enumerate(self._digits.test_batches(batch_size)):
            yield self._scatter(digits, generator(-1, index)), labels

    def _scatter(self, digits: Tensor, random: torch.Generator) -> Tensor:
        ink = digits / 2 + 0.5  # from [-1, 1]
        images = self._noise * torch.randn(len(ink), *self.image_shape, generator=random)
        places = torch.randint(0, self._margin + 1, (len(ink), 2), generator=random).tolist()
        size = ink.shape[-1]
        for image, digit, (top, left) in zip(images, ink, places, strict=True):
            image[:, top : top + size, left : left + size] += digit
        return images
