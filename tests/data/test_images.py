"""Laws of image data: every class on both sides, identical images on one side, batches pure, errors name the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from attensor.data import ImageData, TextData, images, open_data, open_images
from attensor.data.decode import Depth, read_image
from attensor.data.splits import Shares, split_images
from attensor.errors import DataError, MissingExtraError


def write_images(folder: Path, counts: dict[str, int], *, mode: str = "L", size: tuple[int, int] = (11, 13)) -> None:
    """Images of random noise, `size` being (width, height)."""
    rng = random.Random(7)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.randbytes(size[0] * size[1] * len(mode))
            Image.frombytes(mode, size, pixels).save(folder / name / f"{i:03}.png")


def test_every_class_is_on_every_side_in_its_share(tmp_path):
    write_images(tmp_path, {"cat": 20, "dog": 10, "eel": 3})
    data = open_data(tmp_path, minimum_bytes=9, image_size=(5, 7))
    assert isinstance(data, ImageData)
    assert (data.classes, data.image_shape) == (["cat", "dog", "eel"], (1, 5, 7))
    test, selection = (
        torch.cat([labels for _, labels in batches]).bincount().tolist()
        for batches in (data.test_batches(3), data.selection_batches(2))
    )
    assert test == [4, 2, 1]
    assert selection == [2, 1, 1]
    assert (data.train_images, data.selection_images, data.test_images) == (22, 4, 7)


def test_an_epoch_shows_each_training_image_once_and_is_a_pure_function(tmp_path):
    write_images(tmp_path, {"a": 11, "b": 8})
    first, again = (open_images(tmp_path, image_size=(13, 11)) for _ in range(2))
    n = first.train_images
    again.batch(3, seed=2, batch_size=3)
    epochs = first.batch(0, seed=5, batch_size=3 * n)[0].flatten(1)
    one = {tuple(image.tolist()) for image in epochs[:n]}
    assert len(one) == n
    assert one == {tuple(image.tolist()) for image in epochs[n : 2 * n]}
    assert not torch.equal(epochs[:n], epochs[n : 2 * n])
    small = torch.cat([again.batch(i, seed=5, batch_size=5)[0] for i in range(7)]).flatten(1)
    torch.testing.assert_close(small[: 3 * n], epochs[:35], rtol=0, atol=0)
    assert not torch.equal(epochs, first.batch(0, seed=6, batch_size=3 * n)[0].flatten(1))


def test_keeping_or_decoding_each_batch_gives_the_same(tmp_path, monkeypatch):
    write_images(tmp_path, {"a": 5, "b": 7}, mode="RGB")
    kept = open_images(tmp_path, image_size=5)
    monkeypatch.setattr(images, "_KEEP_DECODED_BYTES", 0)
    lazy = open_images(tmp_path, image_size=5)
    for x, y in zip(kept.batch(1, seed=0, batch_size=7), lazy.batch(1, seed=0, batch_size=7), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    assert kept.image_shape == (3, 5, 5)


def test_labels_belong_to_their_images(tmp_path):
    for name, grey in (("dark", 10), ("light", 250)):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i in range(6):
            Image.new("L", (3 + i, 4), grey + i % 5).save(tmp_path / name / "deeper" / f"{i}.png")
    data = open_images(tmp_path, image_size=2)
    pictures, labels = data.batch(0, seed=0, batch_size=23)
    assert pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1
    assert ((pictures.mean((1, 2, 3)) > 0).long() == labels).all()


def test_identical_images_are_never_on_two_sides(tmp_path):
    write_images(tmp_path, {"a": 12, "b": 12})
    for i in range(6):
        for copy in ("a/copy", "b/copy"):
            (tmp_path / f"{copy}{i}.png").write_bytes((tmp_path / f"a/{i:03}.png").read_bytes())
    data = open_images(tmp_path, image_size=(13, 11), selection=0.2, test=0.3)
    sides = [data.test_batches(5), data.selection_batches(3), [data.batch(0, seed=0, batch_size=data.train_images)]]
    sets = [{tuple(x.flatten().tolist()) for batch, _ in side for x in batch} for side in sides]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 24
    assert all(sets)


def test_digits_need_no_folder_and_split_without_copies():
    data = open_data("digits", minimum_bytes=513)
    assert isinstance(data, ImageData)
    assert data.classes == list("0123456789")
    assert data.image_shape == (1, 8, 8)
    assert data.train_images + data.selection_images + data.test_images == 1797
    assert 0.19 < data.test_images / 1797 < 0.21
    assert 0.09 < data.selection_images / 1797 < 0.11
    assert open_images("digits", image_size=12).batch(0, seed=0, batch_size=3)[0].shape == (3, 1, 12, 12)


def test_a_wide_image_is_scaled_and_its_middle_kept(tmp_path):
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste((0, 0, 255), (10, 0, 20, 10))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wide.save(tmp_path / name / "1.png")
        Image.new("RGB", (5, 5)).save(tmp_path / name / "2.png")
    picture = read_image(tmp_path / "a/1.png", depth=Depth(3), size=(5, 5))
    assert picture[:, 2, 2].tolist() == [0, 0, 255]
    assert picture[2, :, 1:4].min() > 200


def test_left_stays_left_and_up_stays_up(tmp_path):
    picture = Image.new("RGB", (10, 10), "black")
    picture.paste((255, 0, 0), (0, 0, 5, 10))
    picture.paste((0, 255, 0), (5, 0, 10, 5))
    picture.save(tmp_path / "1.png")
    decoded = read_image(tmp_path / "1.png", depth=Depth(3), size=(10, 10))
    assert decoded[:, 1, 1].tolist() == [255, 0, 0]
    assert decoded[:, 1, 8].tolist() == [0, 255, 0]
    assert decoded[:, 8, 8].tolist() == [0, 0, 0]


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", depth=Depth(3), size=(3, 3)).unique().tolist() == [255]


def test_a_broken_image_is_named_when_opened_or_when_first_read(tmp_path, monkeypatch):
    write_images(tmp_path, {"a": 3, "b": 3}, size=(50, 50))
    whole = (tmp_path / "b/001.png").read_bytes()
    (tmp_path / "b/001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b/001\.png' is a broken image"):
        open_images(tmp_path, image_size=8)
    monkeypatch.setattr(images, "_KEEP_DECODED_BYTES", 0)
    data = open_images(tmp_path, image_size=8)
    with pytest.raises(DataError, match=r"b/001\.png' is a broken image"):
        list(data.selection_batches(9)), list(data.test_batches(9)), data.batch(0, seed=0, batch_size=9)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, r"has 0 sub-folder\(s\), at least 2 classes"),
        ({"a": 5}, r"has 1 sub-folder\(s\), at least 2 classes"),
        ({"a": 5, "b": 2}, r"/b' has 2 image\(s\).*at least 3"),
        ({"a": 5, "b": 0}, r"/b' has 0 image\(s\)"),
    ],
)
def test_too_few_classes_or_images_are_named(tmp_path, counts, message):
    folder = tmp_path / "set"
    folder.mkdir()
    write_images(folder, counts)
    with pytest.raises(DataError, match=message) as error:
        open_images(folder, image_size=3)
    assert str(folder) in str(error.value)


def test_a_class_of_copies_is_refused(tmp_path):
    write_images(tmp_path, {"a": 4, "b": 2})
    for name in ("again", "more"):
        (tmp_path / f"b/{name}.png").write_bytes((tmp_path / "b/000.png").read_bytes())
    with pytest.raises(DataError, match=r"the 4 image.* of class 'b' are too few, all alike.* at least 3 different"):
        open_images(tmp_path, image_size=3)


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_images(tmp_path / "none", image_size=3)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder"):
        open_images(tmp_path / "file", image_size=3)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="image_size must be positive"):
        open_images("digits", image_size=(0, 3))
    with pytest.raises(ValueError, match="selection and test must be shares"):
        open_images("digits", image_size=3, test=1.0)


def test_a_folder_of_code_with_some_pictures_is_text(tmp_path):
    write_images(tmp_path, {"pictures": 2})
    for i in range(3):
        (tmp_path / f"{i}.py").write_text(f"# {i}\n" * 200)
    assert isinstance(open_data(tmp_path, minimum_bytes=20), TextData)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    write_images(tmp_path, {"a": 3, "b": 3})
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r'reading images needs PIL.*pip install "attensor\[vision\]"'):
        open_images(tmp_path, image_size=3)


def test_split_keeps_equal_keys_together_over_classes():
    """Key x is in both classes; whatever side it takes, it takes in both."""
    labels = [0] * 5 + [1] * 5
    keys = [b"x", b"p", b"q", b"r", b"s", b"x", b"x", b"t", b"u", b"v"]
    sides = split_images(labels, keys, ["zero", "one"], Shares(0.2, 0.4), source="test")
    assert len({int(side) for side, key in zip(sides, keys, strict=True) if key == b"x"}) == 1
    for label in (0, 1):
        assert sides[torch.tensor(labels) == label].unique().tolist() == [0, 1, 2]
