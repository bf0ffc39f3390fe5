"""A folder of real photographs: parts that share no pixel, the same every time."""

from __future__ import annotations

import pytest
from PIL import Image

from attensor.data import photographs
from attensor.data.image_source import open_image_source
from attensor.errors import DataError


def test_crops_to_test_on_come_from_another_side(tmp_path, monkeypatch):
    """Of a picture whose left seven tenths are red and whose right is blue."""
    picture = Image.new("RGB", (100, 60), "red")
    picture.paste((0, 0, 255), (70, 0, 100, 60))
    for name in ("lake", "wood"):
        picture.save(tmp_path / f"{name}.png")
    monkeypatch.setattr(photographs, "pictures", lambda: [tmp_path / "lake.png", tmp_path / "wood.png"])
    assert photographs.write_photographs(tmp_path / "out", train=5, test=3, size=16) == ["lake", "wood"]
    for part, count, other in (("train", 5, 2), ("val", 3, 0)):
        files = sorted((tmp_path / "out" / part / "wood").iterdir())
        assert len(files) == count
        for file in files:
            with Image.open(file) as crop:
                assert crop.size == (16, 16)
                assert crop.getextrema()[other][1] < 10


def test_the_photographs_of_scikit_learn_are_there(tmp_path):
    names = photographs.write_photographs(tmp_path, train=4, test=2, size=24)
    assert {"china", "flower"} <= set(names)
    source = open_image_source(tmp_path)
    assert (len(source.train), len(source.held_out)) == (4 * len(names), 2 * len(names))
    first = (tmp_path / "train" / "china" / "000.jpg").read_bytes()
    photographs.write_photographs(tmp_path / "again", train=1, test=1, size=24)
    assert (tmp_path / "again" / "train" / "china" / "000.jpg").read_bytes() == first


def test_without_pictures_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "pictures", list)
    with pytest.raises(DataError, match="pip install scikit-learn scikit-image"):
        photographs.write_photographs(tmp_path)
