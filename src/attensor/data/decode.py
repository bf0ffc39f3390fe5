"""One image file -> one tensor of bytes. The only place that knows how Pillow decodes.

Images of 8 bits a channel are taken as they are. Deeper grey ones, of whole numbers or of floats, say nowhere what
white is; so the brightest of a folder decides, and all of the folder are scaled alike (`Depth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Depth", "decode_image", "eight_bits", "measure_depth", "open_image", "read_image"]

_GREY_MODES = ("1", "L", "LA", "La", "F", "I")  # and the 16-bit ones, which begin with I;16
# bits of whole numbers that cameras and scanners deliver
_BITS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Depth:
    """How the images of a folder become bytes.

    Attributes:
        channels: 1 if all are grey, else 3.
        bits: of the deep whole-number images: those of the brightest in the folder, rounded up to 8, 10, 12, 14 or 16.
        white: of the float images: 1.0 or 255.0.
    """

    channels: int
    bits: int = 8
    white: float = 255.0


def measure_depth(paths: Sequence[Path]) -> Depth:
    """Look at all images of a folder for their common scale.

    Raises:
        DataError: one is no image, or holds values of no such scale; names the file.
    Cost: reads headers; deep images are decoded.
    """
    is_grey, brightest = True, 0.0
    below, above = None, None  # float images with values up to 1, and up to 255
    for path in paths:
        with open_image(path) as image:
            is_grey = is_grey and (image.mode in _GREY_MODES or image.mode.startswith("I;16"))
            if not _is_deep(image):
                continue
            most = _largest(path, image, most=65535 if image.mode != "F" else 255)
            if image.mode != "F":
                brightest = max(brightest, most)
            elif most > 1:
                above = path
            elif most > 0:
                below = path
    if below is not None and above is not None:
        raise DataError(
            f"{str(below)!r} holds values up to 1 and {str(above)!r} values above: scale all images of the folder "
            "alike, or convert them to 8 or 16 bits."
        )
    bits = next(bits for bits in _BITS if brightest < 2**bits)
    return Depth(1 if is_grey else 3, bits, 255.0 if below is None else 1.0)


def read_image(path: Path, *, depth: Depth, size: tuple[int, int]) -> Tensor:
    """Decode, turn upright, put on white, scale to cover `size` and cut the middle.

    Args:
        path: the file; of an animation the first frame is taken.
        depth: the scale of the folder.
        size: height, width.
    Returns:
        uint8 [depth.channels, height, width].
    Raises:
        DataError: not an image, or a broken one; names the file.
    """
    operations = require("PIL.ImageOps", purpose="reading images")
    fitted = operations.fit(decode_image(path, depth=depth), (size[1], size[0]))
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.view(*size, depth.channels).movedim(-1, 0)


def decode_image(path: Path, *, depth: Depth) -> Image:
    """The whole image, upright and on white, in the mode L for one channel and RGB for three.

    Args:
        path: the file; of an animation the first frame is taken.
        depth: the scale of the folder.
    Raises:
        DataError: not an image, or a broken one; names the file.
    """
    operations = require("PIL.ImageOps", purpose="reading images")
    with open_image(path) as image:
        try:
            image.load()
            upright = _opaque(eight_bits(operations.exif_transpose(image), depth))
            return upright.convert("L" if depth.channels == 1 else "RGB")
        except Exception as error:  # decoders of broken files raise whatever they meet first
            raise DataError(f"{str(path)!r} is a broken image: {str(error).rstrip('.')}.") from error


def open_image(path: Path) -> Image:
    """An image whose header has been read.

    Raises:
        DataError: not an image, or a broken one; names the file.
    """
    pillow: Any = require("PIL.Image", purpose="reading images")
    try:
        image: Image = pillow.open(path)
    except pillow.UnidentifiedImageError as error:
        raise DataError(f"{str(path)!r} is not an image; remove it from the folder or convert it.") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # as above
        raise DataError(f"{str(path)!r} is a broken image: {str(error).rstrip('.')}.") from error
    return image


def _is_deep(image: Image) -> bool:
    return image.mode in ("F", "I") or image.mode.startswith("I;16")


def _values(image: Image) -> Tensor:
    """Of a deep image, float64 [height * width]."""
    is_float = image.mode == "F"
    numbers = bytearray((image if is_float else image.convert("I")).tobytes())
    return torch.frombuffer(numbers, dtype=torch.float32 if is_float else torch.int32).double()


def _largest(path: Path, image: Image, *, most: int) -> float:
    try:
        values = _values(image)
    except Exception as error:  # as above
        raise DataError(f"{str(path)!r} is a broken image: {str(error).rstrip('.')}.") from error
    lowest, highest = float(values.min()), float(values.max())
    if not 0 <= lowest <= highest <= most:  # false for what is not a number
        scales = "0 to 1 or 0 to 255" if image.mode == "F" else "0 to 65535"
        raise DataError(
            f"{str(path)!r} holds values from {lowest:g} to {highest:g} (mode {image.mode}), and those of images are "
            f"read from {scales}. Convert it to 8 or 16 bits."
        )
    return highest


def eight_bits(image: Image, depth: Depth) -> Image:
    """Deep grey images on the scale of bytes, on which a bare `convert` would clip them."""
    if not _is_deep(image):
        return image
    scaled = _values(image)
    scaled = (scaled * (255 / depth.white)).round() if image.mode == "F" else (scaled / 2 ** (depth.bits - 8)).floor()
    pillow: Any = require("PIL.Image", purpose="reading images")
    pixels = bytearray(len(scaled))
    torch.frombuffer(pixels, dtype=torch.uint8).copy_(scaled.clamp(0, 255))
    grey: Image = pillow.frombytes("L", image.size, bytes(pixels))
    return grey


def _opaque(image: Image) -> Image:
    """Transparent drawings on white: a bare `convert` puts them on black."""
    if not image.has_transparency_data:
        return image
    pillow: Any = require("PIL.Image", purpose="reading images")
    coloured = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    white: Image = pillow.new("RGBA", coloured.size, "white")
    white.alpha_composite(coloured)
    return white
