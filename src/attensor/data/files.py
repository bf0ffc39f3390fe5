"""Finding the files of a data set, and reading stretches of them without loading them.

Folders are searched to any depth in an order that depends on names alone. Hidden entries (a leading dot), empty files
and everything that is not a regular file are left out; symbolic links inside the folder are not followed, so that a
file is never met twice and nothing outside the folder is read.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import mmap
import os
import random
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attensor.errors import DataError

__all__ = [
    "ByteStream",
    "DataFile",
    "Segment",
    "failure",
    "find_files",
    "generator",
    "hash_order",
    "inspect_file",
    "locate",
    "printable",
]

_PROBE = 64 * 1024  # bytes read at either end of a file to tell it from others
_SNIFF = 4 * 1024  # a NUL among so many first bytes: not text
_OPEN_FILES = 64


@dataclass(frozen=True)
class DataFile:
    """A regular, non-empty file.

    Attributes:
        path: where it is.
        name: its path relative to the source, with forward slashes.
        size: bytes.
        fingerprint: equal for byte-identical files. Exact up to 128 KiB; longer files of one size that also
            agree in their first and last 64 KiB count as identical.
        has_nul: a NUL is among the first 4 KiB, as in nearly every binary format and never in UTF-8 text.
    """

    path: Path
    name: str
    size: int
    fingerprint: bytes
    has_nul: bool


@dataclass(frozen=True)
class Segment:
    """A stretch of a file: `size` bytes from `start`; the file had `file_size` bytes when it was listed."""

    path: Path
    start: int
    size: int
    file_size: int


def failure(path: Path, error: OSError) -> DataError:
    """The DataError for an operating-system error, naming the path."""
    return DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.")


def locate(source: str | os.PathLike[str]) -> Path:
    """The path of a source the user named, `~` resolved.

    Raises:
        DataError: it does not exist or may not be looked at.
    """
    path = Path(os.path.expanduser(source))
    try:
        path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} does not exist.") from error
    except OSError as error:
        raise failure(path, error) from error
    return path


def printable(path: Path) -> str:
    """The last part of a path, for tables: links resolved, bytes that are no UTF-8 replaced."""
    return os.fsencode(os.path.basename(os.path.realpath(path))).decode("utf-8", "replace")


def find_files(folder: Path, *, excluded: Collection[str] = ()) -> Iterator[tuple[Path, str]]:
    """All regular files below `folder` as (path, relative name), sorted by name folder by folder.

    Args:
        folder: where to begin.
        excluded: names of folders that are not entered, at any depth.
    Raises:
        DataError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise failure(Path(error.filename), error)

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in excluded)
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and stat.S_ISREG(path.lstat().st_mode):
                yield path, path.relative_to(folder).as_posix()


def inspect_file(path: Path, name: str) -> DataFile:
    """Size and fingerprint of one file; reads at most 128 KiB.

    Raises:
        DataError: it is missing, unreadable or not a regular file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError(f"{str(path)!r} is not a regular file.")
        with path.open("rb") as file:
            head = file.read(_PROBE)
            file.seek(max(len(head), status.st_size - _PROBE))
            tail = file.read(_PROBE)
    except OSError as error:
        raise failure(path, error) from error
    digest = hashlib.blake2b(status.st_size.to_bytes(8, "big") + head + tail, digest_size=16).digest()
    return DataFile(path, name, status.st_size, digest, b"\0" in head[:_SNIFF])


def hash_order(name: str | bytes) -> bytes:
    """A key that sorts names as if shuffled, the same on every machine and in every run."""
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


def generator(*parts: int) -> torch.Generator:
    """A CPU generator whose stream is a pure function of the given numbers."""
    return torch.Generator().manual_seed(random.Random(repr(parts)).getrandbits(63))


class ByteStream:
    """Stretches of files as one long string of bytes that is read in place.

    Files are memory-mapped when a window needs them and at most 64 stay open, so thousands of small files and one of
    many gigabytes both work. Python's read-only map is used: `torch.from_file` maps privately writable, which Linux
    refuses for a file larger than the memory.

    Args:
        segments: the stretches, in the order in which they follow one another.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = list(segments)
        self._ends = list(itertools.accumulate(s.size for s in self._segments))
        self._map = functools.lru_cache(maxsize=_OPEN_FILES)(_map_file)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, which may run over the end of one stretch into the next.

        Raises:
            DataError: a file has changed its size, vanished, or cannot be read any more.
        """
        pieces = []
        index = bisect.bisect_right(self._ends, start)
        while size > 0:
            segment = self._segments[index]
            inside = start - (self._ends[index] - segment.size)
            taken = min(size, segment.size - inside)
            begin = segment.start + inside
            pieces.append(self._map(segment.path, segment.file_size)[begin : begin + taken])
            start, size, index = start + taken, size - taken, index + 1
        return b"".join(pieces)

    def windows(self, starts: Sequence[int], size: int) -> Tensor:
        """Bytes as int64 [len(starts), size]."""
        if not starts:
            return torch.empty(0, size, dtype=torch.int64)
        joined = bytearray().join(self.read(start, size) for start in starts)
        return torch.frombuffer(joined, dtype=torch.uint8).view(len(starts), size).long()


def _map_file(path: Path, expected_size: int) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != expected_size:
                raise DataError(f"{str(path)!r} changed while in use: it had {expected_size} bytes and now has {size}.")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise failure(path, error) from error
