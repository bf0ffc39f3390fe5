"""Single pictures that may have holes: read with what is transparent told apart, and written as PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attensor.data.decode import eight_bits, measure_depth, open_image
from attensor.errors import DataError, require

__all__ = ["png", "read_picture", "tiled"]


def read_picture(path: Path, *, channels: int) -> tuple[Tensor, Tensor]:
    """Decode as it is, upright.

    Args:
        path: the file; of an animation the first frame is taken.
        channels: 1 for grey, 3 for RGB.
    Returns:
        uint8 [channels, height, width]; and bool [height, width], False where the picture is wholly transparent.
    Raises:
        DataError: not an image, or a broken one; names the file.
    """
    operations = require("PIL.ImageOps", purpose="reading images")
    depth = measure_depth([path])
    with open_image(path) as image:
        try:
            image.load()
            upright = eight_bits(operations.exif_transpose(image), depth)
            coloured = upright.convert("RGBA") if upright.has_transparency_data else upright
            alpha = coloured.getchannel("A").tobytes() if coloured.mode == "RGBA" else None
            colours = coloured.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # decoders of broken files raise whatever they meet first
            raise DataError(f"{str(path)!r} is a broken image: {str(error).rstrip('.')}.") from error
    width, height = colours.size
    pixels = torch.frombuffer(bytearray(colours.tobytes()), dtype=torch.uint8).view(height, width, channels)
    if alpha is None:
        return pixels.movedim(-1, 0), torch.ones(height, width, dtype=torch.bool)
    return pixels.movedim(-1, 0), torch.frombuffer(bytearray(alpha), dtype=torch.uint8).view(height, width) > 0


def tiled(pictures: Tensor, *, columns: int, gap: int = 1, ground: int = 255) -> Tensor:
    """Pictures [N, C, H, W] side by side, row after row, on a ground that shows between them: uint8 [C, rows, columns].

    Args:
        pictures: uint8.
        columns: pictures in a row.
        gap: pixels between and around them.
        ground: level of what is between.
    """
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = pictures.new_full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), ground)
    for index, picture in enumerate(pictures):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def png(picture: Tensor, *, scale: int = 1) -> bytes:
    """A PNG file of uint8 [1 or 3, height, width], every pixel `scale` x `scale` large.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", purpose="writing images")
    large = picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2).movedim(0, -1).contiguous()
    mode = "L" if picture.shape[0] == 1 else "RGB"
    file = io.BytesIO()
    pillow.frombytes(mode, (large.shape[1], large.shape[0]), bytes(large.flatten().tolist())).save(file, "PNG")
    return file.getvalue()
