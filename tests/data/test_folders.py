"""Every kind of folder that people have: taken for what it is, or refused with the file and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attensor.data import ImageData
from attensor.data.parts import part_of
from attensor.errors import DataError
from attensor.files import RUN_MARK
from tests.data.made import WORDS, every_image, opened, photo, photos, texts, write


def beside(folder: Path, *suffixes: str) -> None:
    """Classes of images with a file of each suffix beside every image."""
    photos(folder, "cat", "dog")
    for image in folder.glob("*/*.png"):
        for suffix in suffixes:
            write(image.with_suffix(suffix), f"{image} {WORDS}")


TAKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a text beside each image": (lambda p: beside(p, ".txt"), "images", "8 files left out: not an image"),
    "two files beside each image": (lambda p: beside(p, ".txt", ".json"), "images", "16 files left out: not an image"),
    "a table in a class": (
        lambda p: (photos(p, "cat", "dog"), write(p / "cat/labels.csv")),
        "images",
        "cat/labels.csv",
    ),
    "a file at the top": (lambda p: (photos(p, "cat", "dog"), write(p / "README.md")), "images", "README.md"),
    "an image at the top": (lambda p: (photos(p, "cat", "dog"), photo(p / "all.png", 9)), "images", "all.png"),
    "what systems add": (
        lambda p: (photos(p, "cat", "dog"), write(p / "cat/Thumbs.db"), write(p / "__MACOSX/cat/._0.png", b"x")),
        "images",
        "",
    ),
    "text and binaries": (
        lambda p: (texts(p), [write(p / f"{i}.pdf", b"%PDF-1.4 " + b"x" * 500) for i in range(5)]),
        "text",
        "5 files left out: PDF (0.pdf, 1.pdf, 2.pdf, ...). Convert it to text",
    ),
    "text and a link": (lambda p: (texts(p), (p / "link").symlink_to(p / "a.txt")), "text", "symbolic link (link)"),
    "text and a linked folder": (lambda p: (texts(p), (p / "link").symlink_to(p)), "text", "symbolic link (link)"),
    "text with some images": (lambda p: (texts(p), photo(p / "x.png", 1)), "text", "PNG image (x.png)"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_folder_is_taken_for_what_it_is_and_what_is_left_out_is_said(tmp_path, name):
    make, kind, note = TAKEN[name]
    make(tmp_path)
    data = opened(tmp_path)
    assert data.kind == kind
    assert note in " ".join(data.notes)
    assert bool(note) == bool(data.notes)
    if isinstance(data, ImageData):
        assert (data.classes, data.train_images + data.selection_images + data.test_images) == (["cat", "dog"], 8)
    else:
        assert (data.train_files, data.selection_files, data.test_files) == (9, 2, 2)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder around the classes": (lambda p: photos(p / "dataset", "cat", "dog"), "Give '{}/dataset'?"),
    "folders around the classes": (lambda p: photos(p / "a/b", "cat", "dog"), "Give '{}/a/b'?"),
    "only a part": (lambda p: photos(p / "train", "cat", "dog"), "Give '{}/train'?"),
    "annotations beside": (
        lambda p: (photos(p / "images", "cat", "dog"), [write(p / f"annotations/{i}.xml") for i in range(4)]),
        "'{}/annotations' has 0 image(s) and 4 other file(s) such as '0.xml'*Give '{}/images'?",
    ),
    "a class of another format": (
        lambda p: (photos(p, "cat"), [write(p / f"dog/{i}.heic", b"\0\0\0\x18ftypheic") for i in range(4)]),
        "'{}/dog' has 0 image(s) and 4 other file(s) such as '0.heic'",
    ),
    "all of a class on both sides": (
        lambda p: (
            photos(p / "train", "cat", "dog"),
            photos(p / "val", "cat", "dog"),
            [write(f.parents[2] / "val/dog" / f"copy{f.name}", f.read_bytes()) for f in p.glob("train/dog/*")],
        ),
        "'{}': every image of class 'dog' to train on is also in another part",
    ),
    "parts without classes": (lambda p: photos(p, "train", "test"), "'{}' needs the same classes in its parts"),
    "parts inside the classes": (
        lambda p: [photos(p / name, "train", "test") for name in ("cat", "dog")],
        "'{}/cat' is divided into parts of a data set. Put the parts outside",
    ),
    "parts without one to train on": (
        lambda p: [photos(p / name, "cat", "dog") for name in ("val", "test")],
        "'{}' holds parts of a data set*give it: '{}/test'",
    ),
    "parts and something else": (
        lambda p: [photos(p / name, "cat", "dog") for name in ("train", "test", "more")],
        "what 'more' is, is not clear. *give it: '{}/train'",
    ),
    "a class in one part": (
        lambda p: (photos(p / "train", "cat", "dog", "eel"), photos(p / "val", "cat", "dog")),
        "has cat, dog, eel in 'train' and cat, dog in 'val'*give it: '{}/train'",
    ),
    "images without suffix": (
        lambda p: (photos(p, "cat", "dog"), [f.rename(f.with_suffix("")) for f in p.glob("*/*.png")]),
        "'{}' has no text: 8 files left out: PNG image (cat/0, cat/1, cat/2, ...). Images need their suffix",
    ),
    "arrays": (
        lambda p: [write(p / f"{i}.npy", b"\x93NUMPY\1\0" + b"x" * 99) for i in range(3)],
        "'{}' has no text: 3 files left out: NumPy array (0.npy, 1.npy, 2.npy). Save it as an image",
    ),
    "text of no mark": (
        lambda p: texts(p, encoding="utf-16-le"),
        "'{}' has no text: 13 files left out: binary, or UTF-16",
    ),
    "a broken image": (
        lambda p: (photos(p, "cat", "dog"), write(p / "cat/0.png", b"no image")),
        "'{}/cat/0.png' is not an image",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_taken_is_refused_with_what_to_give(tmp_path, name):
    make, message = REFUSED[name]
    make(tmp_path)
    with pytest.raises(DataError) as error:
        opened(tmp_path)
    place = 0
    for part in message.format(tmp_path, tmp_path).split("*"):
        place = str(error.value).find(part, place)
        assert place >= 0, f"{part!r} is not in {error.value}"


SPLITS = [
    ("train", "val", "test"),
    ("train", "test"),
    ("train", "valid"),
    ("training", "validation", "testing"),
    ("Train", "Test"),
    ("TRAIN", "DEV", "eval"),
    ("train2017", "val2017"),
    ("train_images", "test_images"),
    ("training-set", "held-out"),
    ("trainset", "testset"),
]


@pytest.mark.parametrize("names", SPLITS, ids="/".join)
def test_the_split_of_image_folders_is_taken(tmp_path, names):
    """With three parts each is a side; with two the second is the test, and the selection is cut off the first."""
    for name in names:
        photos(tmp_path / name, "cat", "dog", count=3)
    data = opened(tmp_path)
    alone = opened(tmp_path / names[-1])
    held = torch.cat([images for images, _ in data.test_batches(5)])
    expected = every_image(alone).float() / 127.5 - 1
    torch.testing.assert_close(held, expected, rtol=0, atol=0)
    assert data.classes == ["cat", "dog"]
    counts = (6, 6, 6) if names[2:] else (4, 2, 6)
    assert (data.train_images, data.selection_images, data.test_images) == counts
    (note,) = data.notes
    assert note.startswith("The split is")
    assert ("cut off the part to train on" in note) == (not names[2:])
    if names[2:]:
        chosen = torch.cat([images for images, _ in data.selection_batches(5)])
        torch.testing.assert_close(chosen, every_image(opened(tmp_path / names[1])).float() / 127.5 - 1, rtol=0, atol=0)


@pytest.mark.parametrize("names", SPLITS, ids="/".join)
@pytest.mark.parametrize("form", ["folders", "files"])
def test_the_split_of_text_folders_is_taken(tmp_path, names, form):
    for name in names:
        write(tmp_path / (f"{name}/a.txt" if form == "folders" else f"{name}.txt"), f"{name}: {WORDS}")
    data = opened(tmp_path)
    assert data._test.read(0, data.test_bytes).decode() == f"{names[-1]}: {WORDS}"
    train, chosen = (s.read(0, len(s)) for s in (data._train, data._selection))
    (note,) = data.notes
    assert note.startswith("The split is")
    if names[2:]:
        assert (train.decode(), chosen.decode()) == (f"{names[0]}: {WORDS}", f"{names[1]}: {WORDS}")
    else:
        whole = f"{names[0]}: {WORDS}".encode()
        assert whole.startswith(train)
        assert whole.endswith(chosen)
        assert "cut off the part to train on" in note


def test_names_of_parts_among_others_are_no_split_of_text(tmp_path):
    texts(tmp_path / "src")
    texts(tmp_path / "train")
    texts(tmp_path / "test")
    data = opened(tmp_path)
    assert data.notes == ()
    assert data.train_files + data.selection_files + data.test_files == 39


def test_what_is_tested_on_is_not_trained_on(tmp_path):
    """Copies in both parts are taken out of the training part, and that is said."""
    for folder in (tmp_path / "images/train", tmp_path / "images/val"):
        photos(folder, "cat", "dog", count=3)
        photo(folder / "cat/copy.png", 5)
    data = opened(tmp_path / "images")
    assert (data.train_images, data.selection_images, data.test_images) == (4, 2, 7)
    assert "1 file left out: also set apart for a later part (train/cat/copy.png)." in data.notes
    texts(tmp_path / "text/train")
    texts(tmp_path / "text/val", "fg")
    write(tmp_path / "text/train/copy.txt", (tmp_path / "text/val/f.txt").read_bytes())
    data = opened(tmp_path / "text")
    assert (data.train_files, data.selection_files, data.test_files) == (11, 2, 2)
    assert "1 file left out: also set apart for a later part (train/copy.txt)." in data.notes


@pytest.mark.parametrize("name", ["cat", "trains", "contest", "data", "2017", "model", "train_cat", "latest"])
def test_other_names_are_no_parts(name):
    assert part_of(name) is None


def run_folder(folder: Path) -> None:
    write(folder / RUN_MARK, "")
    write(folder / "report.html", WORDS * 50)
    write(folder / "linear/plan.png", b"no image")


@pytest.mark.parametrize("place", ["2026-01-31", "runs/2026-01-31", "cat/2026-01-31", "deep/runs/x"])
@pytest.mark.parametrize(
    "make", [lambda p: photos(p, "cat", "dog"), lambda p: texts(p / "cat")], ids=["images", "text"]
)
def test_runs_inside_the_data_are_no_data(tmp_path, place, make):
    make(tmp_path)
    before = opened(tmp_path)
    run_folder(tmp_path / place)
    after = opened(tmp_path)
    assert (after.kind, after.fingerprint, after.notes) == (before.kind, before.fingerprint, before.notes)
    if isinstance(before, ImageData):
        assert after.classes == before.classes


PILLOW_READS = [
    ".jfif",
    ".avif",
    ".jp2",
    ".tga",
    ".ico",
    ".jpe",
    ".apng",
    ".dib",
    ".pcx",
    ".sgi",
    ".qoi",
    ".pnm",
    ".j2k",
]
PILLOW_READS += [".mpo", ".dds", ".bmp", ".gif", ".jpg", ".JPG", ".ppm", ".tif", ".TIFF", ".webp"]


@pytest.mark.parametrize("suffix", PILLOW_READS)
def test_every_format_that_pillow_reads_is_an_image(tmp_path, suffix):
    photos(tmp_path, "cat", "dog", suffix=suffix, count=3)
    data = opened(tmp_path)
    assert isinstance(data, ImageData)
    assert every_image(data).double().std() > 5
