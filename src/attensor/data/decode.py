"""One image file -> one tensor of bytes. The only place that knows Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["is_grey", "read_image"]

_GREY_MODES = ("1", "L", "LA", "F", "I")  # and the 16-bit ones, which begin with I;16


def is_grey(path: Path) -> bool:
    """Whether the file says that it has one channel; reads the header only.

    Raises:
        DataError: not an image.
    """
    with _open(path) as image:
        return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def read_image(path: Path, *, channels: int, size: tuple[int, int]) -> Tensor:
    """Decode, turn upright, put on white, scale to cover `size` and cut the middle.

    Args:
        path: the file; of an animation the first frame is taken.
        channels: 1 (grey) or 3 (RGB).
        size: height, width.
    Returns:
        uint8 [channels, height, width].
    Raises:
        DataError: not an image, or a broken one; names the file.
    """
    operations = require("PIL.ImageOps", purpose="reading images")
    with _open(path) as image:
        try:
            image.load()
            upright = _opaque(operations.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
            fitted = operations.fit(upright, (size[1], size[0]))
        except Exception as error:  # decoders of broken files raise whatever they meet first
            raise DataError(f"{str(path)!r} is a broken image: {error}.") from error
    return torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).view(*size, channels).movedim(-1, 0)


def _open(path: Path) -> Image:
    pillow: Any = require("PIL.Image", purpose="reading images")
    try:
        image: Image = pillow.open(path)
    except pillow.UnidentifiedImageError as error:
        raise DataError(f"{str(path)!r} is not an image; remove it from the folder or convert it.") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # as above
        raise DataError(f"{str(path)!r} is a broken image: {error}.") from error
    return image


def _opaque(image: Image) -> Image:
    """Transparent drawings on white, 16-bit grey scaled to 8: a bare `convert` gives black and clips."""
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if not image.has_transparency_data:
        return image
    pillow: Any = require("PIL.Image", purpose="reading images")
    coloured = image.convert("RGBA")
    white: Image = pillow.new("RGBA", coloured.size, "white")
    white.alpha_composite(coloured)
    return white
