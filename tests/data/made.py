"""Folders of text and images, made for a test."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from attensor.data import ImageData, TextData, open_data

WORDS = "the quick brown fox jumps over the lazy dog, caf\u00e9 \u4e2d\n" * 9
SIDE = 8


def grey(seed: int) -> list[int]:
    """Pixels of a noise image."""
    return list(random.Random(seed).randbytes(SIDE * SIDE))


def photo(path: Path, seed: int) -> None:
    """A colour image of noise, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (SIDE, SIDE), random.Random(seed).randbytes(3 * SIDE * SIDE)).save(path)


def photos(folder: Path, *classes: str, suffix: str = ".png", count: int = 4) -> None:
    """Classes of images, all different, and different in folders of other names."""
    for name in classes:
        for i in range(count):
            photo(folder / name / f"{i}{suffix}", hash_of(f"{folder.name}/{name}/{i}"))


def hash_of(text: str) -> int:
    """A seed of its own for every text."""
    return int.from_bytes(text.encode(), "big")


def write(path: Path, content: bytes | str = WORDS) -> None:
    """A file, with the folders around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def texts(folder: Path, names: Sequence[str] = "abcdefghijklm", encoding: str = "utf-8") -> None:
    """Files of text, all different."""
    for name in names:
        write(folder / f"{name}.txt", f"{folder.name} {name} {WORDS}".encode(encoding))


def opened(folder: Path) -> TextData | ImageData:
    """What `open_data` makes of it, with the sizes of these tests."""
    return open_data(folder, minimum_bytes=17, image_size=SIDE)


def every_image(data: ImageData) -> torch.Tensor:
    """All images, trained on and held out, in a fixed order: uint8 [images, channels, SIDE, SIDE]."""
    return data._fetch(range(len(data._labels)))
