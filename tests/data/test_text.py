"""Laws of text data: windows are bytes of the files, batches are pure functions, nothing leaks between the sides."""

from __future__ import annotations

import itertools
import os
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attensor.data import open_data, open_text
from attensor.data.files import DataFile, inspect_file
from attensor.data.kinds import TEXT
from attensor.data.splits import Shares, split_text
from attensor.data.stream import ByteStream, Segment
from attensor.errors import DataError


def write_folder(folder: Path, sizes: dict[str, int], *, seed: int = 3) -> dict[str, bytes]:
    """Files of random printable bytes; returns their contents by name."""
    rng = random.Random(seed)
    contents = {name: bytes(rng.choices(range(32, 127), k=size)) for name, size in sizes.items()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return contents


def rows(windows: torch.Tensor) -> list[bytes]:
    return [bytes(row) for row in windows.tolist()]


def segments(folder: Path, name: str) -> list[Segment]:
    file = inspect_file(folder / name, name)
    return [Segment(file, 0, file.size)]


def test_a_stream_reads_what_concatenation_would(tmp_path):
    """Any stretch, over any number of file boundaries, equals the slice of the joined bytes."""
    contents = write_folder(tmp_path, {"a": 11, "b": 1, "c": 29, "d": 2, "e": 13})
    stream = ByteStream([s for name in contents for s in segments(tmp_path, name)])
    joined = b"".join(contents.values())
    assert len(stream) == len(joined) == 56
    for start in range(56):
        for size in range(56 - start + 1):
            assert stream.read(start, size) == joined[start : start + size]


def test_a_stream_of_parts_stays_inside_its_parts(tmp_path):
    content = write_folder(tmp_path, {"a": 101})["a"]
    file = inspect_file(tmp_path / "a", "a")
    stream = ByteStream([Segment(file, 7, 13), Segment(file, 53, 17)])
    assert stream.read(0, 30) == content[7:20] + content[53:70]


def test_more_files_than_stay_open(tmp_path):
    """Thousands of files work: only a bounded number of descriptors is held."""
    contents = write_folder(tmp_path, {f"{i:04}.txt": 3 for i in range(1500)})
    stream = ByteStream([s for name in contents for s in segments(tmp_path, name)])
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert stream.read(0, 4500) == b"".join(contents.values())
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 64


def test_a_file_larger_than_memory_is_read_in_place(tmp_path):
    """A sparse terabyte: the training side is drawn from all of it."""
    path = tmp_path / "large.txt"
    path.write_bytes(b"x" * 4096)
    os.truncate(path, 2**40)
    data = open_text(path, minimum_bytes=1031)
    assert data.train_bytes + data.selection_bytes + data.test_bytes + 2 * 1031 == 2**40
    assert data.batch(0, seed=1, batch_size=3, length=7).shape == (3, 8)
    assert data.selection(7, limit=2)[0].tolist() == data.test(7, limit=2)[0][1].tolist() == [0] * 8


def test_batches_are_windows_of_the_training_side_and_depend_on_step_and_seed_alone(tmp_path):
    contents = write_folder(tmp_path, {f"{i}.txt": 211 for i in range(23)})
    first, again = (open_text(tmp_path, minimum_bytes=17) for _ in range(2))
    again.batch(5, seed=9, batch_size=2, length=3)  # what was asked before does not matter
    batch = first.batch(4, seed=2, batch_size=19, length=13)
    assert batch.shape == (19, 14)
    assert batch.dtype == torch.int64
    torch.testing.assert_close(batch, again.batch(4, seed=2, batch_size=19, length=13), rtol=0, atol=0)
    assert not torch.equal(batch, first.batch(5, seed=2, batch_size=19, length=13))
    assert not torch.equal(batch, first.batch(4, seed=3, batch_size=19, length=13))
    everything = b"".join(contents[name] for name in sorted(contents))
    inside = [row for row in rows(batch) if row in everything]
    assert len(inside) >= 15  # the others run over a boundary where a held-out file was taken out


def test_every_training_position_is_drawn(tmp_path):
    """Uniform over all starts, the first and the last included."""
    (tmp_path / "a").write_bytes(bytes(range(40, 100)))
    data = open_text(tmp_path / "a", minimum_bytes=4)
    starts = data.batch(0, seed=1, batch_size=4000, length=3)[:, 0].sub(40).bincount(minlength=60)
    assert data.train_bytes == 60 - 2 * 6 - 2 * 4
    assert starts[:37].min() > 40
    assert starts[37:].sum() == 0


def test_windows_of_the_selection_are_fixed_spread_and_disjoint(tmp_path):
    (tmp_path / "a").write_bytes(bytes(40 + i % 211 for i in range(1009)))
    data = open_text(tmp_path / "a", minimum_bytes=20)
    assert data.selection_bytes == 100
    windows = rows(data.selection(11, limit=5))
    tail = (tmp_path / "a").read_bytes()[-220:-120]
    starts = [tail.index(w) for w in windows]
    assert (starts[0], starts[-1]) == (0, 100 - 12)
    assert all(b - a >= 12 for a, b in itertools.pairwise(starts))
    assert len(data.selection(11, limit=999)) == 100 // 12
    assert windows == rows(data.selection(11, limit=5))


def test_one_file_keeps_gaps_between_the_sides(tmp_path):
    content = bytes(32 + i % 224 for i in range(1024))
    (tmp_path / "a").write_bytes(content)
    data = open_text(tmp_path / "a", minimum_bytes=37)
    assert (data.train_bytes, data.selection_bytes, data.test_bytes) == (1024 - 2 * (102 + 37), 102, 102)
    assert data._test.read(0, 102) == content[-102:]
    assert data._selection.read(0, 102) == content[-102 - 37 - 102 : -102 - 37]
    assert (data.name, data.train_files, data.selection_files, data.test_files) == ("a", 1, 1, 1)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    kinds=st.integers(1, 60),
    selection=st.sampled_from([0.0, 0.05, 0.1, 0.3]),
    test=st.sampled_from([0.05, 0.1, 0.3]),
)
def test_no_content_is_ever_on_two_sides(sizes, kinds, selection, test):
    """With any sizes and any number of copies: whole files, or the parts of one copy with the gap between them."""
    sizes = [sizes[i % kinds % len(sizes)] for i in range(len(sizes))]
    files = [
        DataFile(Path(f"/{i}"), str(i), size, f"{size}/{i % kinds}".encode(), TEXT, 0) for i, size in enumerate(sizes)
    ]
    sides = split_text(files, Shares(selection, test), gap=7)
    for (i, earlier), (j, later) in itertools.combinations(enumerate(sides), 2):
        for one, other in itertools.product(earlier, later):
            if one.file.fingerprint == other.file.fingerprint:
                assert one.file.path == other.file.path
                ends = one.start + one.size + 7
                assert ends == other.start if j == i + 1 else ends <= other.start
    sums = [sum(s.size for s in side) for side in sides]
    for size, share in zip(sums[1:], (selection, test), strict=True):
        assert size <= share * sum(sizes) + min(share for share in (selection, test) if share) * sum(sizes)
        assert size == 0 or share
        if all(size < min(selection or test, test) * sum(sizes) / 8 for size in sizes) and kinds >= len(sizes):
            assert share <= size / sum(sums) <= 1.2 * max(selection, test)


def test_copies_stay_together_and_whole_files_are_set_apart(tmp_path):
    contents = write_folder(tmp_path, {f"{i:02}.txt": 100 for i in range(40)})
    for i in range(0, 40, 2):
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / f"copy/{i}.txt").write_bytes(contents[f"{i:02}.txt"])
    data = open_text(tmp_path, minimum_bytes=10)
    sides = [rows(data.test(99, limit=10**6)[0]), rows(data.selection(99, limit=10**6))]
    train = data._train.read(0, data.train_bytes)
    for side in sides:
        assert set(side) <= set(contents.values())
        assert not any(content in train for content in side)
    assert not set(sides[0]) & set(sides[1])
    assert data.train_files + data.selection_files + data.test_files == 60


def test_the_split_does_not_depend_on_where_the_folder_lies(tmp_path):
    for place in ("here", "there/deep"):
        write_folder(tmp_path / place, {f"{i}.txt": 50 + i for i in range(31)})
    here, there = (open_text(tmp_path / p, minimum_bytes=5) for p in ("here", "there/deep"))
    assert rows(here.selection(19, limit=99)) == rows(there.selection(19, limit=99))
    assert rows(here.test(19, limit=99)[0]) == rows(there.test(19, limit=99)[0])
    assert (here.name, there.name) == ("here", "deep")


def test_folders_leave_out_hidden_binary_empty_and_linked_files(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_bytes(b"o" * 999)
    folder = tmp_path / "in"
    write_folder(folder, {"a.txt": 1000, "sub/b.py": 1000, ".hidden": 500, ".git/config": 500})
    (folder / "empty").touch()
    (folder / "binary").write_bytes(b"\x7fELF\0" + b"z" * 700)
    (folder / "link.txt").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    data = open_text(folder, minimum_bytes=10, test=0.5, selection=0.0)
    assert data.train_bytes + data.test_bytes == 2000


def test_bytes_that_are_no_utf8_are_kept(tmp_path):
    content = bytes(random.Random(5).choices(range(32, 256), k=3001))
    (tmp_path / "a.latin").write_bytes(content)
    data = open_data(tmp_path / "a.latin", minimum_bytes=11)
    assert data._train.read(0, 100) == content[:100]


def test_names_that_are_no_utf8_are_readable(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe<b>"
    with open(path, "wb") as file:
        file.write(b"abcd" * 500)
    assert open_text(os.fsdecode(path), minimum_bytes=10).name == "\ufffd\ufffd<b>"


def test_stdlib_is_source_code_without_tests():
    data = open_data("stdlib", minimum_bytes=513)
    assert data.name == "stdlib"
    assert data.train_bytes > 3_000_000
    total = data.train_bytes + data.selection_bytes + data.test_bytes
    assert 0.09 < data.test_bytes / total < 0.15
    assert 0.09 < data.selection_bytes / total < 0.15
    folders = {part for s in (*data._train._segments, *data._test._segments) for part in s.file.path.parts[:-1]}
    assert "json" in folders
    assert not folders & {"site-packages", "test", "tests", "__pycache__", "encodings"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.touch(), "is empty"),
        (lambda p: p.mkdir(), "has no text: no file"),
        (lambda p: (p.mkdir(), (p / "x").write_bytes(b"\0" * 9)), "has no text: 1 file left out: binary.*x.*iconv"),
        (lambda p: p.write_bytes(b"x" * 99), "too small: it has 99 bytes of text.*of 53 bytes.*about 532 bytes"),
        (os.mkfifo, "not a regular file"),
        (lambda p: p.symlink_to(p), "cannot be read: Too many levels"),
    ],
)
def test_bad_sources_are_refused_by_name(tmp_path, make, message):
    path = tmp_path / "the source"
    make(path)
    with pytest.raises(DataError, match=message) as error:
        open_data(path, minimum_bytes=53)
    assert repr(str(path)) in str(error.value)


@pytest.mark.parametrize("shares", [{}, {"test": 0.05}, {"test": 0.6}, {"selection": 0.0, "test": 0.1}], ids=str)
def test_the_size_that_is_asked_for_is_enough(tmp_path, shares):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    with pytest.raises(DataError) as error:
        open_text(path, minimum_bytes=53, **shares)
    needed = int(re.search(r"about (\d+) bytes", str(error.value))[1])
    path.write_bytes(b"x" * needed)
    open_text(path, minimum_bytes=53, **shares)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, {"fine.txt": 500, "secret.txt": 500})
    read = Path.open

    def refuse(self, *args, **kwargs):
        if self.name == "secret.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"secret\.txt' cannot be read: Permission denied"):
        open_text(tmp_path, minimum_bytes=10)


def test_windows_longer_than_a_side_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    data = open_text(tmp_path / "a", minimum_bytes=10)
    with pytest.raises(DataError, match="selection side has 100 bytes, a window of length 100 needs 101"):
        data.selection(100, limit=3)
    with pytest.raises(DataError, match="test side has 100 bytes, a window of length 100 needs 101"):
        data.test(100, limit=3)
    with pytest.raises(DataError, match="training side has 780 bytes"):
        data.batch(0, seed=0, batch_size=1, length=780)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (-0.1, 0.3)], ids=str)
def test_the_shares_must_leave_something_on_every_side(shares):
    with pytest.raises(ValueError, match="selection and test must be shares that leave something to train on: got"):
        open_text("stdlib", minimum_bytes=5, selection=shares[0], test=shares[1])


def test_windows_of_the_test_lie_in_one_file_each_and_tell_it(tmp_path):
    """Spread over all files that have room, none twice; shorter files go with those that follow them."""
    sizes = {f"{i:02}.txt": 20 + 13 * (i % 7) for i in range(90)}
    contents = write_folder(tmp_path, sizes)
    data = open_text(tmp_path, minimum_bytes=30, test=0.4, selection=0.1)
    windows, units = data.test(24, limit=10**6)
    names = [segment.file.name for segment in data._test._segments]
    assert sorted(units.tolist()) == units.tolist()
    assert units.unique().tolist() == list(range(int(units[-1]) + 1))
    assert int(units[-1]) > 10
    inside = [[name for name in names if row in contents[name]] for row in rows(windows)]
    alone = [found for found in inside if found]
    assert len(alone) > 0.8 * len(inside)  # the others begin in a file that is shorter than a window
    for unit in range(int(units[-1])):
        own = {name for found, of in zip(inside, units.tolist(), strict=True) if of == unit for name in found}
        other = {name for found, of in zip(inside, units.tolist(), strict=True) if of != unit for name in found}
        assert not own & other
    fewer, of_fewer = data.test(24, limit=13)
    assert set(rows(fewer)) < set(rows(windows))
    assert len(set(rows(fewer))) == 13
    assert of_fewer.unique().tolist() == list(range(len(of_fewer.unique())))


def test_windows_of_few_files_count_as_files(tmp_path):
    write_folder(tmp_path, {"a": 4000})
    windows, units = open_text(tmp_path / "a", minimum_bytes=10).test(9, limit=17)
    assert units.tolist() == list(range(17))
    assert len(set(rows(windows))) == 17
