"""Image files as levels of an Axial Transformer with holes to fill, and levels as pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from attensor.data.pictures import read_picture
from attensor.errors import DataError
from attensor.models.vision.axial_config import AxialTransformerConfig

__all__ = ["levels_of_file", "pixels_of"]


def levels_of_file(path: Path, config: AxialTransformerConfig, *, rows: int | None = None) -> Tensor:
    """Levels of an image file, and -1 where it is transparent, and below where it is shorter than the model's images.

    Args:
        path: the file.
        config: of the model; images of 1 (grey) or 3 (RGB) channels.
        rows: take only so many from the top; all if None.
    Returns:
        int64 [C, H, W].
    Raises:
        DataError: no such image, one of another width, or a taller one. ValueError: a model that has no such images.
    """
    channels, (height, width) = config.in_channels, config.image_size
    if config.num_frames is not None or channels not in (1, 3):
        what = "videos" if config.num_frames is not None else f"images of {channels} channels"
        raise ValueError(
            f"the model is of {what}, which are no pictures of a file; use AxialTransformer.sample(given=)."
        )
    pixels, is_known = read_picture(path, channels=channels)
    if pixels.shape[2] != width or pixels.shape[1] > height:
        raise DataError(
            f"{str(path)!r} has {pixels.shape[1]} rows of {pixels.shape[2]} pixels, the model's images {height} of "
            f"{width}; scale it to a width of {width} and cut it to at most {height} rows."
        )
    given = torch.full((channels, height, width), -1)
    taken = min(pixels.shape[1], height if rows is None else rows)
    levels = (pixels[:, :taken].double() * (config.num_levels - 1) / 255).round().long()
    given[:, :taken] = torch.where(is_known[:taken], levels, -1)
    return given


def pixels_of(levels: Tensor, config: AxialTransformerConfig, *, unknown: int = 160) -> Tensor:
    """Levels [..., C, H, W] as uint8 of the same shape, from black to white; `unknown` in place of negative ones."""
    pixels = (levels.double() * 255 / (config.num_levels - 1)).round()
    return pixels.masked_fill(levels < 0, unknown).to(torch.uint8)
