"""Data that changes: while it is in use and between two openings, every change is noticed and the file is named."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from attensor.data import files, images, open_data
from attensor.errors import DataError


def text(path: Path, size: int = 1 << 20) -> None:
    path.write_bytes(bytes(random.Random(size).choices(range(32, 127), k=size)))


def classes(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for i in range(5):
            pixels = random.Random(f"{name}{i}").randbytes(19 * 17)
            Image.frombytes("L", (19, 17), pixels).save(folder / name / f"{i}.png")


def later(path: Path) -> None:
    """Clocks of file systems tick slowly; a person's edit comes later than in a test."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def overwrite(path: Path, start: int, count: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"Z" * count)
    later(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "emptied": (lambda p: os.truncate(p, 0), "changed while in use: it had 1048576 bytes and now has 0"),
    "cut short": (lambda p: os.truncate(p, 100), "changed while in use: it had 1048576 bytes and now has 100"),
    "longer": (
        lambda p: p.write_bytes(p.read_bytes() + b"Z"),
        "changed while in use: it had 1048576 bytes and now has 1048577",
    ),
    "overwritten": (lambda p: overwrite(p, 0, 1 << 20), "changed while in use: it has been written to"),
    "its middle overwritten": (lambda p: overwrite(p, 500_000, 9), "changed while in use: it has been written to"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("was_read", [False, True])
def test_text_that_changes_in_use_is_named(tmp_path, name, was_read):
    """Never by SIGBUS, which a memory map of a file cut short gives."""
    path = tmp_path / "a.txt"
    text(path)
    data = open_data(path, minimum_bytes=20)
    if was_read:
        data.batch(0, seed=0, batch_size=2, length=19)
    change, message = CHANGES[name]
    change(path)
    with pytest.raises(DataError, match=f"'{path}' {message}"):
        data.batch(1, seed=0, batch_size=2, length=19)
    with pytest.raises(DataError, match=f"'{path}' {message}"):
        data.selection(19, limit=3)


def test_text_that_vanishes_is_named_until_it_is_open(tmp_path):
    """Who has a file open goes on with it, as everywhere."""
    text(tmp_path / "a.txt")
    data, other = (open_data(tmp_path / "a.txt", minimum_bytes=20) for _ in range(2))
    before = data.batch(1, seed=0, batch_size=2, length=19)
    (tmp_path / "a.txt").unlink()
    assert data.batch(1, seed=0, batch_size=2, length=19).equal(before)
    with pytest.raises(DataError, match=r"a\.txt' cannot be read: No such file"):
        other.batch(1, seed=0, batch_size=2, length=19)


@pytest.mark.parametrize("name", ["emptied", "overwritten", "gone"])
def test_images_that_change_in_use_are_named(tmp_path, name, monkeypatch):
    classes(tmp_path)
    monkeypatch.setattr(images, "_KEEP_DECODED_BYTES", 0)
    data = open_data(tmp_path, minimum_bytes=9, image_size=8)
    path = tmp_path / "dog/3.png"
    if name == "gone":
        path.unlink()
    elif name == "emptied":
        os.truncate(path, 0)
    else:
        Image.open(tmp_path / "cat/3.png").save(path)
        later(path)
    with pytest.raises(DataError, match=r"dog/3\.png' (is not an image|cannot be read|changed while in use)"):
        list(data.selection_batches(3)), list(data.test_batches(3)), data.batch(0, seed=0, batch_size=data.train_images)


EDITS: dict[str, Callable[[Path], object]] = {
    "the beginning": lambda p: overwrite(p, 0, 1),
    "the middle": lambda p: overwrite(p, 500_000, 1),
    "the end": lambda p: overwrite(p, (1 << 20) - 1, 1),
    "the name": lambda p: p.rename(p.with_name("z.txt")),
    "the length": lambda p: os.truncate(p, 1000_000),
}


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("name", EDITS)
def test_the_fingerprint_tells_other_contents_of_the_same_size(tmp_path, name, limit, monkeypatch):
    """Also of data too large to be read whole, there by the time of writing."""
    monkeypatch.setattr(files, "_READ_WHOLE", limit)
    for letter in "abc":
        text(tmp_path / f"{letter}.txt")
    first, again = (open_data(tmp_path, minimum_bytes=20).fingerprint for _ in range(2))
    EDITS[name](tmp_path / "b.txt")
    assert first == again != open_data(tmp_path, minimum_bytes=20).fingerprint


def test_the_fingerprint_is_of_contents_and_not_of_places_or_times(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        text(tmp_path / place / "a.txt")
        classes(tmp_path / place)
    later(tmp_path / "there/a.txt")
    for inside in ("a.txt", "."):
        here, there = (open_data(tmp_path / p / inside, minimum_bytes=20, image_size=8) for p in ("here", "there"))
        assert here.fingerprint == there.fingerprint != ""


def test_the_fingerprint_of_images_tells_an_edited_one(tmp_path):
    classes(tmp_path)
    before = open_data(tmp_path, minimum_bytes=20, image_size=8).fingerprint
    Image.new("L", (19, 17), 7).save(tmp_path / "cat/2.png")
    assert open_data(tmp_path, minimum_bytes=20, image_size=8).fingerprint != before


def test_opening_keeps_nothing_of_large_files_in_memory(tmp_path):
    text(tmp_path / "a.txt", 4 << 20)
    tracemalloc.start()
    open_data(tmp_path / "a.txt", minimum_bytes=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
