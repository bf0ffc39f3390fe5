"""Images to train on: listed without being read, made into batches that depend on their number alone."""

from __future__ import annotations

import os
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from attensor.data import image_source
from attensor.data.augment import Pixels, Views, plain_view, random_view
from attensor.data.image_batches import HeldOutBatches, TrainingBatches, batches_from
from attensor.data.image_source import open_image_source
from attensor.data.mixing import Mixing, mix, soft_targets
from attensor.errors import DataError

SIZE = (24, 20)
CLASSES = ("ant", "bee", "cow")


def folder_of(root: Path, *, count: int = 9, parts: tuple[str, ...] = ("",)) -> Path:
    """Pictures whose colour says which they are: (20 * number, 60 * class, 50 * part)."""
    for p, part in enumerate(parts):
        for c, name in enumerate(CLASSES):
            place = root / part / name
            place.mkdir(parents=True)
            for number in range(count):
                colour = (20 * number, 60 * c, 50 * p)
                Image.new("RGB", (31 + number, 29 + c), colour).save(place / f"{number}.png")
    return root


def batches(source, *, seed=3, views=None, mixing=None, batch_size=5):
    return TrainingBatches(
        source,
        SIZE,
        views=views or Views(pixels=Pixels((0, 0, 0), (1, 1, 1)), crop_scale=0.4),
        mixing=mixing or Mixing(),
        smoothing=0.0,
        batch_size=batch_size,
        seed=seed,
    )


def seen(made):
    """(number, class) of each image of plain colours."""
    colours = (255 * made.images.mean((-2, -1))).round().int().tolist()
    return [(red // 20, green // 60) for red, green, _ in colours]


def test_an_epoch_has_every_image_once_and_the_next_another_order(tmp_path):
    source = open_image_source(folder_of(tmp_path), held_out=0.2)
    assert len(source.train) == 3 * 7
    assert len(source.held_out) == 3 * 2
    assert not set(source.train.tolist()) & set(source.held_out.tolist())
    made = batches(source, batch_size=7)
    epochs = [[pair for n in range(3 * e, 3 * e + 3) for pair in seen(made[n])] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 21
    assert epochs[0] != epochs[1]
    labels = [int(target.argmax()) for target in made[0].targets]
    assert labels == [label for _, label in seen(made[0])]


@pytest.mark.parametrize("views", [None, Views(flip=0.5, crop_scale=1.0)])
def test_a_batch_depends_on_its_number_and_the_seed_alone(tmp_path, views):
    source = open_image_source(folder_of(tmp_path))
    before = torch.get_rng_state()
    mixing = Mixing(mixup=0.8, cutmix=1.0)
    one = [batches(source, views=views, mixing=mixing)[n] for n in range(6)]
    made = batches(source, views=views, mixing=mixing)
    for number in (4, 1, 5):
        assert torch.equal(made[number].images, one[number].images)
        assert torch.equal(made[number].targets, one[number].targets)
    assert not torch.equal(batches(source, seed=4, views=views)[0].images, one[0].images)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_of_every_epoch_has_a_view_of_its_own(tmp_path):
    ramp = Image.linear_gradient("L").rotate(90).convert("RGB")
    source = replace(open_image_source(folder_of(tmp_path)), open=lambda number: ramp)
    made = batches(source, batch_size=len(source.train))
    views = torch.cat([made[0].images, made[1].images])[:, 0, 8]
    assert len({tuple(view.tolist()) for view in views}) == 2 * len(source.train)


def test_batches_travel_to_another_process(tmp_path):
    for source in (open_image_source(folder_of(tmp_path)), open_image_source("digits")):
        made = batches(source)
        made[0]
        again = pickle.loads(pickle.dumps(made))
        assert torch.equal(again[3].images, made[3].images)


@pytest.mark.slow
def test_worker_processes_change_nothing(tmp_path):
    source = open_image_source(folder_of(tmp_path))
    made = batches(source, mixing=Mixing(cutmix=1.0))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for workers in (0, 3):
        found = list(batches_from(made, range(2, 7), workers=workers))
        assert all(torch.equal(a.images, made[n].images) for n, a in enumerate(found, 2))
        assert len(found) == 5
    assert torch.equal(torch.get_rng_state(), state)


def test_the_split_is_by_names_and_a_new_file_moves_no_other(tmp_path):
    before = open_image_source(folder_of(tmp_path, count=10), held_out=0.2)
    held = {before.name_of(i) for i in before.held_out.tolist()}
    Image.new("RGB", (5, 5)).save(tmp_path / "ant" / "new.png")
    after = open_image_source(tmp_path, held_out=0.2)
    moved = {after.name_of(i) for i in after.held_out.tolist()} ^ held
    assert len(moved) <= 2
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(("parts", "test"), [(("train", "val"), 0), (("train", "val", "test"), 27)])
def test_a_folder_says_what_is_held_out(tmp_path, parts, test):
    source = open_image_source(folder_of(tmp_path, parts=parts))
    assert {source.name_of(i).partition("/")[0] for i in source.held_out.tolist()} == {"val"}
    assert len(source.train) == len(source.held_out) == 27
    assert len(source.test) == test
    assert source.classes == CLASSES


def test_a_broken_file_is_named_and_another_takes_its_place(tmp_path):
    (folder_of(tmp_path) / "bee" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    (tmp_path / "cow" / "5.png").write_bytes(b"")
    source = open_image_source(tmp_path, held_out=0.01)
    made = batches(source, batch_size=6)
    found = [made[n] for n in range(4)]
    broken = [name for one in found for name in one.broken]
    names = {source.name_of(i) for i in source.train.tolist()}
    assert set(broken) == {"bee/3.png", "cow/5.png"} & names
    assert broken
    assert all(one.images.shape == (6, 3, *SIZE) for one in found)
    assert all(torch.equal(a.images, made[n].images) for n, a in enumerate(found))
    held = HeldOutBatches(source, torch.arange(27), SIZE, views=Views(), batch_size=10)
    parts = [held[n] for n in range(len(held))]
    assert sum(len(one.targets) for one in parts) == 25
    assert [name for one in parts for name in one.broken] == ["bee/3.png", "cow/5.png"]


def test_whatever_files_hold_no_batch_fails(tmp_path):
    """Pictures of all kinds, cut short and changed at places of chance: each is read or named."""
    folder_of(tmp_path, count=4)
    chance = random.Random(3)
    picture = Image.frombytes("RGB", (40, 30), chance.randbytes(3600))
    for number in range(60):
        suffix, mode = chance.choice(
            [(".png", "RGBA"), (".jpg", "CMYK"), (".png", "I;16"), (".gif", "P"), (".tif", "F")]
        )
        path = tmp_path / "ant" / f"changed{number:02}{suffix}"
        (picture.convert("L").convert(mode) if mode in "I;16F" else picture.convert(mode)).save(path)
        text = bytearray(path.read_bytes())
        if chance.random() < 0.4:
            del text[chance.randrange(len(text)) :]
        for _ in range(chance.randrange(4)):
            if text:
                text[chance.randrange(min(len(text), 200))] = chance.randrange(256)
        path.write_bytes(text)
    source = open_image_source(tmp_path)
    made = batches(source, batch_size=16)
    found = [made[n] for n in range(len(source.train) // 16 + 1)]
    assert all(one.images.shape == (16, 3, *SIZE) and one.images.isfinite().all() for one in found)
    broken = {name for one in found for name in one.broken}
    assert 5 < len(broken) < 60
    assert all("changed" in name for name in broken)


def test_a_folder_that_cannot_be_read_is_said_to_be_one(tmp_path):
    for path in folder_of(tmp_path).glob("*/*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 27 images that were tried can be read"):
        open_image_source(tmp_path)


def test_files_that_vanish_end_in_one_error(tmp_path):
    source = open_image_source(folder_of(tmp_path))
    for path in tmp_path.glob("*/*.png"):
        path.unlink()
    with pytest.raises(DataError, match="20 images in a row cannot be read"):
        next(batches_from(batches(source), range(3), workers=0))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda root: root / "not there", "does not exist"),
        (lambda root: folder_of(root) / "ant", r"0 sub-folder\(s\), at least 2 classes"),
        (lambda root: (root / "one" / "x.png").parent.mkdir() or root, r"1 sub-folder"),
    ],
)
def test_what_is_no_such_folder_is_refused(tmp_path, make, match):
    with pytest.raises(DataError, match=match):
        open_image_source(make(tmp_path))


def test_a_share_outside_of_0_to_1_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"held_out must be a share between 0 and 1, got 1\.5"):
        open_image_source("digits", held_out=1.5)


@pytest.mark.slow
def test_fifty_thousand_files_are_listed_and_not_read(tmp_path, monkeypatch):
    picture = folder_of(tmp_path / "a", count=3) / "ant" / "1.png"
    for c in range(50):
        place = tmp_path / "many" / f"class{c:02}"
        place.mkdir(parents=True)
        for number in range(1000):
            os.link(picture, place / f"{number:04}.png")
    opened = []
    whole = image_source.measure_depth
    monkeypatch.setattr(image_source, "measure_depth", lambda paths: opened.extend(paths) or whole(paths))
    source = open_image_source(tmp_path / "many")
    assert len(source.train) == 45_000
    assert len(source.held_out) == 5_000
    assert len(set(opened)) == 32
    assert source.name_of(49_999) == "class49/0999.png"


def test_digits_are_those_of_the_comparison_and_in_colour():
    source = open_image_source("digits")
    assert (len(source.train), len(source.held_out), len(source.test)) == (1433, 364, 0)
    image = source.open(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))


def test_a_plain_view_is_the_middle():
    """Of a picture with a border of another colour nothing of the border is left."""
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste((0, 0, 255), (60, 10, 140, 90))
    views = Views(pixels=Pixels((0, 0, 0), (1, 1, 1)), kept=0.7)
    view = plain_view(picture, (32, 32), views)
    assert view[2].min() == 1
    assert view[0].max() == 0
    assert plain_view(picture, (32, 32), Views(pixels=views.pixels, kept=1.0))[0].max() == 1


def test_pixels_are_normalised():
    views = Views(pixels=Pixels((0.5, 0.25, 0.0), (0.5, 0.25, 2.0)), crop_scale=1.0, flip=0.0)
    for view in (
        plain_view(Image.new("RGB", (9, 9), "white"), (4, 6), views),
        random_view(Image.new("RGB", (9, 9), "white"), (4, 6), views, random.Random(0)),
    ):
        assert view.shape == (3, 4, 6)
        assert view.mean((1, 2)).tolist() == pytest.approx([1.0, 3.0, 0.5])


def test_crops_keep_their_share_and_their_place_and_flips_turn_them():
    """A ramp from left to right says where a crop was: its ends are the box."""
    ramp = Image.linear_gradient("L").rotate(90).convert("RGB")  # 256 x 256
    views = Views(pixels=Pixels((0, 0, 0), (1, 1, 1)), crop_scale=0.5, flip=0.5)
    widths, flipped = [], 0
    for n in range(100):
        row = 255 * random_view(ramp, (16, 16), views, random.Random(n))[0, 8]
        flipped += int(row[0] > row[-1])
        widths.append(abs(float(row[-1] - row[0])) * 16 / 15)
    assert 30 < flipped < 70
    assert min(widths) > 256 * (0.5 * 3 / 4) ** 0.5 - 4
    assert max(widths) <= 257
    assert max(widths) - min(widths) > 60


def test_the_views_of_narrow_pictures_exist():
    views = Views(crop_scale=0.08)
    for size in ((3, 400), (400, 3), (1, 1)):
        for n in range(5):
            assert random_view(Image.new("RGB", size), (8, 8), views, random.Random(n)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crop_scale": 0.0}, "crop_scale must be a share"),
        ({"flip": 1.5}, "flip must be a share"),
        ({"rand_augment": (2, 30)}, "a magnitude from 1 to 29"),
        ({"rand_augment": (0, 3)}, "number of operations"),
    ],
)
def test_views_that_are_none_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Views(**options)


def test_kornia_changes_views_by_the_given_chance_alone():
    pytest.importorskip("kornia")
    picture = Image.linear_gradient("L").convert("RGB")
    views = Views(pixels=Pixels(), rand_augment=(2, 27), erasing=1.0, crop_scale=1.0, flip=0.0)
    state = torch.get_rng_state()
    made = [random_view(picture, (32, 32), views, random.Random(n)) for n in (0, 1, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])
    erased = [int((one == 0).all(0).sum()) for one in made]
    assert all(0.01 * 1024 < count < 0.4 * 1024 for count in erased)


def test_targets_are_probabilities():
    targets = soft_targets(torch.tensor([2, 0]), 5, 0.1)
    assert targets.sum(1).tolist() == pytest.approx([1, 1])
    assert targets[0].tolist() == pytest.approx([0.02, 0.02, 0.92, 0.02, 0.02])


@pytest.mark.parametrize("how", [Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing(0.8, 1.0)])
def test_targets_say_how_much_of_each_image_there_is(how):
    """Images of the constants 0 .. 4: the mean of a mixed one is the mean that its targets say."""
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 12, 10).contiguous()
    shares = []
    for n in range(50):
        mixed, targets = mix(images, torch.eye(5), how, random.Random(n))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(5.0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(targets.sum(1), torch.ones(5))
        shares.append(float(targets[0, 0]))
    assert min(shares) < 0.5
    assert max(shares) > 0.7


def test_mixup_draws_from_the_beta_distribution():
    images = torch.zeros(2, 3, 4, 4)
    draws = torch.tensor(
        [float(mix(images, torch.eye(2), Mixing(mixup=0.8), random.Random(f"draw {n}"))[1][0, 0]) for n in range(4000)]
    )
    # variance of Beta(a, a) is 1 / (4 (2 a + 1))
    assert draws.mean() == pytest.approx(0.5, abs=0.02)
    assert draws.var() == pytest.approx(1 / (4 * 2.6), abs=0.006)


def test_without_mixing_nothing_is_changed():
    images, targets = torch.randn(3, 3, 4, 4), torch.eye(3)
    assert mix(images, targets, Mixing(), random.Random(0)) == (images, targets)
    with pytest.raises(ValueError, match="at least 0"):
        Mixing(mixup=-1)
