"""Every kind of folder that people have: taken for what it is, or refused with the file and what to do."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from attensor.data import ImageData, TextData, open_data
from attensor.data.kinds import TEXT, kind_of
from attensor.data.parts import part_of
from attensor.errors import DataError
from attensor.files import RUN_MARK

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
    return int.from_bytes(text.encode(), "big")


def write(path: Path, content: bytes | str = WORDS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def texts(folder: Path, names: Sequence[str] = "abcdefghijklm", encoding: str = "utf-8") -> None:
    for name in names:
        write(folder / f"{name}.txt", f"{folder.name} {name} {WORDS}".encode(encoding))


def beside(folder: Path, *suffixes: str) -> None:
    """Classes of images with a file of each suffix beside every image."""
    photos(folder, "cat", "dog")
    for image in folder.glob("*/*.png"):
        for suffix in suffixes:
            write(image.with_suffix(suffix), f"{image} {WORDS}")


def opened(folder: Path) -> TextData | ImageData:
    return open_data(folder, minimum_bytes=17, image_size=SIDE)


def every_image(data: ImageData) -> torch.Tensor:
    """All images, trained on and held out, in a fixed order: uint8 [images, channels, SIDE, SIDE]."""
    return data._fetch(range(len(data._labels)))


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
        assert (data.classes, data.train_images + data.held_out_images) == (["cat", "dog"], 8)
    else:
        assert (data.train_files, data.held_out_files) == (11, 2)


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
    """What is held out is the second part and nothing else; a third is left out and counted."""
    for name in names:
        photos(tmp_path / name, "cat", "dog", count=3)
    data = opened(tmp_path)
    alone = opened(tmp_path / names[1])
    held = torch.cat([images for images, _ in data.held_out_batches(5)])
    expected = every_image(alone).float() / 127.5 - 1
    torch.testing.assert_close(held, expected, rtol=0, atol=0)
    assert (data.classes, data.train_images, data.held_out_images) == (["cat", "dog"], 6, 6)
    assert data.notes[0].startswith("The split is")
    assert [f"6 files left out: of {names[2]!r}" in data.notes[1]] == [True] if names[2:] else len(data.notes) == 1


@pytest.mark.parametrize("names", SPLITS, ids="/".join)
@pytest.mark.parametrize("form", ["folders", "files"])
def test_the_split_of_text_folders_is_taken(tmp_path, names, form):
    for name in names:
        write(tmp_path / (f"{name}/a.txt" if form == "folders" else f"{name}.txt"), f"{name}: {WORDS}")
    data = opened(tmp_path)
    assert data._train.read(0, data.train_bytes).decode() == f"{names[0]}: {WORDS}"
    assert data._held_out.read(0, data.held_out_bytes).decode() == f"{names[1]}: {WORDS}"
    assert data.notes[0].startswith("The split is")


def test_names_of_parts_among_others_are_no_split_of_text(tmp_path):
    texts(tmp_path / "src")
    texts(tmp_path / "train")
    texts(tmp_path / "test")
    data = opened(tmp_path)
    assert data.notes == ()
    assert data.train_files + data.held_out_files == 39


def test_what_is_held_out_is_not_trained_on(tmp_path):
    """Copies in both parts are taken out of the training part, and that is said."""
    for folder, extra in ((tmp_path / "images/train", 0), (tmp_path / "images/val", 0)):
        photos(folder, "cat", "dog", count=3 + extra)
        photo(folder / "cat/copy.png", 5)
    data = opened(tmp_path / "images")
    assert (data.train_images, data.held_out_images) == (6, 7)
    assert "1 file left out: to train on, but also held out (train/cat/copy.png)." in data.notes
    texts(tmp_path / "text/train")
    texts(tmp_path / "text/val", "fg")
    write(tmp_path / "text/train/copy.txt", (tmp_path / "text/val/f.txt").read_bytes())
    data = opened(tmp_path / "text")
    assert (data.train_files, data.held_out_files) == (13, 2)
    assert "1 file left out: to train on, but also held out (train/copy.txt)." in data.notes


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
    photos(tmp_path, "cat", "dog", suffix=suffix, count=2)
    data = opened(tmp_path)
    assert isinstance(data, ImageData)
    assert every_image(data).double().std() > 5


MAGIC = {
    "PDF": b"%PDF-1.7\n" + b"1 0 obj <</Type /Catalog>>\n" * 40,
    "Office document": b"PK\x03\x04" + b"word/document.xml" * 40,
    "ZIP": b"PK\x05\x06" + b"x" * 30,
    "gzip": b"\x1f\x8b" + b"x" * 99,
    "Parquet": b"PAR1" + b"x" * 99,
    "zstd": b"\x28\xb5\x2f\xfd" + b"x" * 99,
    "tar": b"name".ljust(257, b"x") + b"ustar" + b"x" * 99,
    "PNG": b"\x89PNG\r\n\x1a\n" + b"x" * 99,
    "program": b"\x7fELF" + b"x" * 99,
    "binary": bytes(random.Random(1).choices(range(1, 256), k=999)),
}


@pytest.mark.parametrize("name", MAGIC)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_what_is_no_text_is_refused_by_kind_with_the_remedy(tmp_path, name, form):
    path = tmp_path / "x" if form == "folder" else tmp_path / "0.dat"
    for i in range(3 if form == "folder" else 1):
        write((path / f"{i}.dat") if form == "folder" else path, MAGIC[name])
    with pytest.raises(DataError, match=rf"{name}.*\. \w.*\.$") as error:
        opened(path)
    assert repr(str(path)) in str(error.value)
    assert "0.dat" in str(error.value)


LEGACY = ["latin-1", "cp1252", "koi8-r", "shift_jis", "gb18030", "big5", "euc-kr", "iso2022_jp", "utf-7", "utf-8-sig"]


@pytest.mark.parametrize("encoding", LEGACY)
def test_text_in_any_encoding_is_text(encoding):
    letters = "\u0430\u0431\u0432 \u65e5\u672c\u8a9e \uac00\ub098 na\u00efve \u00fcber\t\x1b[1mbold\x1b[0m\r\n" * 30
    assert kind_of(letters.encode(encoding, "ignore")) == TEXT
    assert kind_of(bytes(range(128, 256)) * 9) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("form", ["file", "folder", "mixed"])
def test_utf_16_and_32_with_a_mark_are_read_as_their_utf_8_twins(tmp_path, encoding, form):
    own, other = {"file": ("a", ""), "folder": ("abcdefghijklm", ""), "mixed": ("abcdefg", "hijklm")}[form]
    texts(tmp_path / "twin/x", own + other)
    texts(tmp_path / "in/x", own, encoding)
    texts(tmp_path / "in/x", other)
    place = "x/a.txt" if form == "file" else "x"
    data, twin = opened(tmp_path / "in" / place), opened(tmp_path / "twin" / place)
    assert data.notes == ()
    for side in ("train", "held_out"):
        size = getattr(twin, f"{side}_bytes")
        assert getattr(data, f"{side}_bytes") == size
        assert getattr(data, f"_{side}").read(0, size) == getattr(twin, f"_{side}").read(0, size)
    assert data.train_bytes > 3 * data.held_out_bytes > 0


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "source is empty; give a path"),
        (" ", "source is empty; give a path"),
        ("~nosuchuser/data", "there is no user nosuchuser"),
        ("https://example.org/data.txt", "is an address and not a path; download it first"),
        ("s3://bucket/data", "is an address and not a path; download it first"),
        ("file:///etc/hostname", "is an address and not a path"),
        ("a\0b", "null"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_strange_sources_are_refused_by_name(source, message):
    with pytest.raises(DataError, match=message):
        opened(source)


def test_a_loop_of_links_is_refused_by_name(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name in ("a", "a/c"):
        with pytest.raises(DataError, match=f"{tmp_path}/{name}' cannot be read: Too many levels"):
            opened(tmp_path / name)
