"""Stretches of files as one long string of bytes that is read in place."""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.data.files import DataFile, failure

__all__ = ["ByteStream", "Segment"]

_OPEN_FILES = 64


@dataclass(frozen=True)
class Segment:
    """A stretch of a file: `size` bytes from `start`."""

    file: DataFile
    start: int
    size: int


class ByteStream:
    """Stretches of files as one long string of bytes.

    Files are opened when a window needs them and at most 64 stay open, so thousands of small files and one of many
    gigabytes both work. They are read and not memory-mapped: a map of a file that is cut short kills the process.

    Args:
        segments: the stretches, in the order in which they follow one another.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = list(segments)
        self._ends = list(itertools.accumulate(s.size for s in self._segments))
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(_OpenFile)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def sizes(self) -> list[int]:
        """Bytes of each stretch."""
        return [segment.size for segment in self._segments]

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, which may run over the end of one stretch into the next.

        Raises:
            DataError: a file has been written to, vanished, or cannot be read any more.
        """
        pieces = []
        index = bisect.bisect_right(self._ends, start)
        while size > 0:
            segment = self._segments[index]
            inside = start - (self._ends[index] - segment.size)
            taken = min(size, segment.size - inside)
            begin = segment.start + inside
            text = segment.file.text
            pieces.append(self._open(segment.file).read(begin, taken) if text is None else text[begin : begin + taken])
            start, size, index = start + taken, size - taken, index + 1
        return b"".join(pieces)

    def stretches(self, least: int) -> list[tuple[int, int]]:
        """Start and size of each stretch; one shorter than `least` bytes is one with those that follow it."""
        found: list[tuple[int, int]] = []
        for segment, end in zip(self._segments, self._ends, strict=True):
            if found and (found[-1][1] < least or (end == self._ends[-1] and segment.size < least)):
                found[-1] = (found[-1][0], found[-1][1] + segment.size)
            else:
                found.append((end - segment.size, segment.size))
        return found

    def windows(self, starts: Sequence[int], size: int) -> Tensor:
        """Bytes as int64 [len(starts), size]."""
        if not starts:
            return torch.empty(0, size, dtype=torch.int64)
        joined = bytearray().join(self.read(start, size) for start in starts)
        return torch.frombuffer(joined, dtype=torch.uint8).view(len(starts), size).long()


class _OpenFile:
    """A file that can be read at any place, as long as it is as it was when it was listed."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        try:
            self._descriptor = os.open(file.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise failure(file.path, error) from error
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, size: int) -> bytes:
        try:
            data = _read(self._descriptor, size, start)
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise failure(self._file.path, error) from error
        self._file.check(status)
        return data


def _read(descriptor: int, size: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    os.lseek(descriptor, start, os.SEEK_SET)  # Windows
    return os.read(descriptor, size)
