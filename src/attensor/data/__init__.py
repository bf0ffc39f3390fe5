"""Data to compare mechanisms on: real text and real images, with nothing to download."""

from __future__ import annotations

import os

from attensor.data.classes import holds_images
from attensor.data.files import locate
from attensor.data.images import ImageData, open_images
from attensor.data.text import TextData, open_text

__all__ = ["BUNDLED", "ImageData", "TextData", "open_data", "open_images", "open_text"]

BUNDLED = ("stdlib", "digits")


def open_data(
    source: str | os.PathLike[str], *, minimum_bytes: int, image_size: int | tuple[int, int] | None = None
) -> TextData | ImageData:
    """Text or images, whichever the source holds.

    `"stdlib"` and `"digits"` are bundled; a folder called so is reached as `./stdlib`. A file is text. A folder is
    images when most of its files have the suffix of an image, those with the name of an image (its caption) left
    aside; else text.

    Args:
        source: a file, a folder, `"stdlib"` or `"digits"`.
        minimum_bytes: the longest window of text that will be asked for, see `open_text`.
        image_size: height and width, see `open_images`.
    Raises:
        DataError: the source cannot be used; the message names the file.
    """
    if source == "digits" or (source != "stdlib" and (path := locate(source)).is_dir() and holds_images(path)):
        return open_images(source, image_size=image_size)
    return open_text(source, minimum_bytes=minimum_bytes)
