"""Data to compare mechanisms on: real text and real images, with nothing to download."""

from __future__ import annotations

from attensor.data.images import ImageData as ImageData
from attensor.data.images import open_images as open_images
from attensor.data.source import BUNDLED as BUNDLED
from attensor.data.source import open_data as open_data
from attensor.data.text import TextData as TextData
from attensor.data.text import open_text as open_text

__all__ = ["BUNDLED", "ImageData", "TextData", "open_data", "open_images", "open_text"]
