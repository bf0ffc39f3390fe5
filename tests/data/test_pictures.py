"""Pictures with holes, and sheets of pictures: what is written is what is read."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from attensor.data.pictures import png, read_picture, tiled
from attensor.errors import DataError


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(channels: int, tmp_path: Path) -> None:
    picture = torch.arange(channels * 4 * 5, dtype=torch.uint8).view(channels, 4, 5) * 3
    (tmp_path / "x.png").write_bytes(png(picture))
    again, is_known = read_picture(tmp_path / "x.png", channels=channels)
    assert torch.equal(again, picture)
    assert is_known.shape == (4, 5)
    assert is_known.all()
    with Image.open(io.BytesIO(png(picture, scale=3))) as large:
        assert large.size == (15, 12)
        assert large.getpixel((7, 10)) == (picture[0, 3, 2] if channels == 1 else tuple(picture[:, 3, 2].tolist()))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_holes(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 2), (80, 80, 80, 255))
    image.putpixel((2, 1), (80, 80, 80, 0))
    image.putpixel((0, 1), (80, 80, 80, 7))  # hardly seen is seen
    image.convert(mode).save(tmp_path / "x.png")
    pixels, is_known = read_picture(tmp_path / "x.png", channels=1)
    assert is_known.tolist() == [[True] * 3, [True, True, False]]
    assert pixels[0, 0].tolist() == [80] * 3


def test_a_colour_of_a_palette_is_a_hole(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2))
    image.putpalette([80, 80, 80, 90, 90, 90])
    image.putpixel((2, 1), 1)
    image.save(tmp_path / "x.png", transparency=1)
    pixels, is_known = read_picture(tmp_path / "x.png", channels=1)
    assert is_known.tolist() == [[True] * 3, [True, True, False]]
    assert pixels[0, 0].tolist() == [80] * 3


def test_pictures_stand_upright_and_deep_ones_are_scaled(tmp_path: Path) -> None:
    turned = Image.new("L", (3, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg", channels=1)[0].shape == (1, 3, 2)
    Image.frombytes("I;16", (2, 1), (65535).to_bytes(2, "little") + (256).to_bytes(2, "little")).save(
        tmp_path / "d.png"
    )
    assert read_picture(tmp_path / "d.png", channels=3)[0][:, 0].tolist() == [[255, 1]] * 3


def test_a_sheet_has_pictures_in_rows_with_ground_between() -> None:
    pictures = torch.arange(1, 4, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 1, 2)
    sheet = tiled(pictures, columns=2, ground=9)
    assert sheet[0].tolist() == [
        [9, 9, 9, 9, 9, 9, 9],
        [9, 1, 1, 9, 2, 2, 9],
        [9, 9, 9, 9, 9, 9, 9],
        [9, 3, 3, 9, 9, 9, 9],
        [9, 9, 9, 9, 9, 9, 9],
    ]


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(DataError, match=r"x\.png' is not an image"):
        read_picture(tmp_path / "x.png", channels=1)
    (tmp_path / "y.png").write_bytes(png(torch.randint(256, (1, 40, 40), dtype=torch.uint8))[:900])
    with pytest.raises(DataError, match=r"y\.png' is a broken image"):
        read_picture(tmp_path / "y.png", channels=1)
