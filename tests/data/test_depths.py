"""Images of more than 8 bits: on the scale of their twins of 8 bits, or refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from attensor.errors import DataError
from tests.data.made import SIDE, every_image, grey, hash_of, opened, photo, photos


def deep(mode: str, numbers: list[float]) -> Image.Image:
    """A grey image of more than 8 bits."""
    kind = {"F": "f", "I": "i", "I;16": "H", "I;16B": "H"}[mode]
    order = ">" if mode == "I;16B" else "<"
    return Image.frombytes(mode, (SIDE, SIDE), struct.pack(f"{order}{SIDE * SIDE}{kind}", *numbers))


DEPTHS: dict[str, tuple[str, Callable[[int], float]]] = {
    "16 bits": ("I;16", lambda v: v * 257),
    "16 bits, big end first": ("I;16B", lambda v: v * 257),
    "12 bits": ("I;16", lambda v: v * 16 + 15),
    "10 bits": ("I;16", lambda v: v * 4),
    "8 bits in 16": ("I;16", lambda v: v),
    "16 bits in 32": ("I", lambda v: v * 257),
    "8 bits in 32": ("I", lambda v: v),
    "floats to 1": ("F", lambda v: v / 255),
    "floats to 255": ("F", lambda v: v),
}


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize("others", ["alone", "with grey", "with colour"])
def test_deep_images_have_the_pixels_of_their_twins_of_8_bits(tmp_path, name, others):
    """A dark image among them, and images of 8 bits, keep the scale of all."""
    mode, value = DEPTHS[name]
    for label in ("cat", "dog"):
        for i in range(3):
            # 250 is in each folder, so that its brightest needs all bits; the second image is dark
            pixels = [p // 9 if i == 1 else p for p in grey(hash_of(f"{label}{i}"))]
            pixels[0] = 250 if i == 0 else pixels[0]
            for folder in ("deep", "twin"):
                (tmp_path / folder / label).mkdir(parents=True, exist_ok=True)
            twin = Image.frombytes("L", (SIDE, SIDE), bytes(pixels))
            twin.save(tmp_path / f"twin/{label}/{i}.tiff")
            is_deep = i < 2 or others == "alone"
            (deep(mode, [value(p) for p in pixels]) if is_deep else twin).save(tmp_path / f"deep/{label}/{i}.tiff")
    if others == "with colour":
        for folder in ("deep", "twin"):
            photo(tmp_path / folder / "cat/colour.png", 3)
    data, twin = opened(tmp_path / "deep"), opened(tmp_path / "twin")
    assert data.image_shape == twin.image_shape
    assert torch.equal(every_image(data), every_image(twin))


NO_SCALE = {
    "not a number": ("F", lambda v: float("nan")),
    "one not a number": ("F", lambda v: float("nan") if v == 7 else v),
    "infinite": ("F", lambda v: float("inf") if v == 7 else v / 255),
    "negative floats": ("F", lambda v: v / 128 - 1),
    "floats of 16 bits": ("F", lambda v: v * 257.0),
    "31 bits": ("I", lambda v: v * 2**22),
    "negative": ("I", lambda v: v - 128),
}


@pytest.mark.parametrize("name", NO_SCALE)
def test_images_without_a_scale_are_refused_by_name(tmp_path, name):
    mode, value = NO_SCALE[name]
    photos(tmp_path, "cat", "dog")
    deep(mode, [value(p) for p in [7, 255, *grey(1)][: SIDE * SIDE]]).save(tmp_path / "dog/x.tiff")
    with pytest.raises(DataError, match=rf"dog/x\.tiff' holds values .*mode {mode}.*Convert it to 8 or 16 bits"):
        opened(tmp_path)


def test_floats_of_two_scales_are_refused_by_name(tmp_path):
    photos(tmp_path, "cat", "dog")
    deep("F", [float(p) for p in grey(1)]).save(tmp_path / "cat/x.tiff")
    deep("F", [p / 255 for p in grey(2)]).save(tmp_path / "dog/y.tiff")
    with pytest.raises(DataError, match=r"dog/y\.tiff' holds values up to 1 and .*cat/x\.tiff' values above"):
        opened(tmp_path)
