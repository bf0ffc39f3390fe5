r"""Text and code as bytes (vocabulary 256), split without leakage (see `splits`).

A side is the concatenation of its files in the order of their names. Windows may run from one file into the next, as
in the packed batches that language models are trained on; nothing is inserted between files.
"""

from __future__ import annotations

import bisect
import itertools
import math
import os
import sysconfig
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attensor.data.files import DataFile, contents, generator, locate, printable
from attensor.data.folds import Folds
from attensor.data.left_out import LeftOut
from attensor.data.splits import Shares, given_text, split_text
from attensor.data.stream import ByteStream, Segment
from attensor.data.text_files import text_files
from attensor.errors import DataError

__all__ = ["TextData", "open_text"]

# of the test, below which its windows count as files
_FEWEST_FILES = 8
# of what is read where not all is
_PART_BYTES = 65_536


class TextData:
    """Bytes to train on, to choose learning rates on (the selection), and to test on.

    Attributes:
        kind: `"text"`.
        vocab_size: 256, one token per byte.
        name: what the source is called in tables.
        train_bytes, selection_bytes, test_bytes: size of each side.
        train_files, selection_files, test_files: files with at least one byte on that side.
        fingerprint: SHA-256 of names and contents of all files, see `contents`.
        notes: what was left out, and who made the split; sentences for the user.
    """

    kind = "text"
    vocab_size = 256

    def __init__(
        self,
        name: str,
        train: Sequence[Segment],
        selection: Sequence[Segment],
        test: Sequence[Segment],
        fingerprint: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.fingerprint, self.notes = name, fingerprint, tuple(notes)
        self._train, self._selection, self._test = ByteStream(train), ByteStream(selection), ByteStream(test)
        self.train_bytes, self.selection_bytes, self.test_bytes = map(len, (self._train, self._selection, self._test))
        self.train_files, self.selection_files, self.test_files = len(train), len(selection), len(test)

    def batch(self, step: int, *, seed: int, batch_size: int, length: int) -> Tensor:
        """Training windows, drawn uniformly: a pure function of the arguments, so that resuming needs no state.

        Args:
            step: number of the training step.
            seed: of the run.
            batch_size: windows.
            length: tokens a window predicts; a window has one byte more.
        Returns:
            int64 [batch_size, length + 1], values 0..255.
        Raises:
            DataError: the training side is shorter than a window.
        """
        starts = self.starts(step, seed=seed, batch_size=batch_size, length=length)
        return self._train.windows(starts.tolist(), length + 1)

    def starts(self, step: int, *, seed: int, batch_size: int, length: int) -> Tensor:
        """The place in the training side at which each window of `batch` begins: int64 [batch_size]."""
        last = self._last_start("training", self.train_bytes, length)
        return torch.randint(last + 1, (batch_size,), generator=generator(seed, step))

    def folds(self, count: int) -> Folds:
        """The training side in folds."""
        return Folds.of(self._train.sizes, count)

    def train_text(self, folds: Folds, *, limit: int) -> Iterator[tuple[bytes, int]]:
        """The stretches of `folds` with their numbers; of more than `limit` bytes, as many evenly spread.

        Raises:
            DataError: a file cannot be read.
        """
        parts = max(1, limit // _PART_BYTES) if self.train_bytes > limit else 0
        wanted = [(self.train_bytes * i // parts, _PART_BYTES) for i in range(parts)] or [(0, self.train_bytes)]
        for start, size in wanted:
            for first, last, number in folds.between(start, start + size):
                yield self._train.read(first, last - first), number

    def selection(self, length: int, *, limit: int) -> Tensor:
        """Fixed windows of the selection, evenly spread from its first byte to its last, never overlapping.

        Args:
            length: tokens a window predicts; a window has one byte more.
            limit: most windows to return; there are fewer when the side is short.
        Returns:
            int64 [windows, length + 1].
        Raises:
            DataError: the side is shorter than a window.
        """
        last = self._last_start("selection", self.selection_bytes, length)
        count = min(limit, self.selection_bytes // (length + 1))
        return self._selection.windows([last * i // max(count - 1, 1) for i in range(count)], length + 1)

    def test(self, length: int, *, limit: int) -> tuple[Tensor, Tensor]:
        """Fixed windows of the test, evenly spread, never overlapping, and the file that each of them lies in.

        A file that is shorter than a window goes with those that follow it; where fewer than 8 files remain, every
        window counts as one, since what one file says of others cannot be told.

        Args:
            length, limit: as of `selection`.
        Returns:
            int64 [windows, length + 1], and int64 [windows]: numbers 0, 1, ... of the files, ascending.
        Raises:
            DataError: the side is shorter than a window.
        """
        self._last_start("test", self.test_bytes, length)
        # places for windows, counted and not listed: a file may have billions
        stretches = self._test.stretches(length + 1)
        room = [size // (length + 1) for _, size in stretches]
        ends = list(itertools.accumulate(room))
        count = min(limit, ends[-1])
        starts, numbers = [], []
        for place in (ends[-1] * (2 * i + 1) // (2 * count) for i in range(count)):
            number = bisect.bisect_right(ends, place)
            start, size = stretches[number]
            starts.append(start + size * (place - ends[number] + room[number]) // room[number])
            numbers.append(number)
        files = sorted(set(numbers))
        units = torch.tensor([files.index(number) for number in numbers])
        if len(files) < _FEWEST_FILES:
            units = torch.arange(count)
        return self._test.windows(starts, length + 1), units

    def _last_start(self, side: str, size: int, length: int) -> int:
        if size < length + 1:
            raise DataError(
                f"{self.name!r}: the {side} side has {size} bytes, a window of length {length} needs {length + 1}; "
                "use a shorter length or more text."
            )
        return size - length - 1


def open_text(
    source: str | os.PathLike[str], *, selection: float = 0.1, test: float = 0.1, minimum_bytes: int
) -> TextData:
    """Text or code, byte by byte, in any encoding; UTF-16 and UTF-32 with a mark at the beginning become UTF-8.

    Args:
        source: a file; a folder, searched to any depth (hidden entries, symbolic links, and files that are no text by
            their first 4 KiB are left out); or `"stdlib"`, the running Python's standard library: its `*.py` files
            without tests, installed packages and character tables.
        selection, test: shares of the bytes that are set apart, where the names in the folder do not say it; a
            selection of 0 leaves it out.
        minimum_bytes: the longest window that will be asked for. Each side must have as many, and a file that is
            itself split has gaps as long.
    Raises:
        DataError: the source is missing, unreadable, without text, or too small.
    Cost: a folder is listed and, up to 1 GiB in all, the whole of each file is read (see `contents`); nothing is kept
        in memory but what was UTF-16 or UTF-32.
    """
    shares = Shares(selection, test)
    if source == "stdlib":
        path, name = locate(sysconfig.get_paths()["stdlib"]), "stdlib"
    else:
        path = locate(source)
        name = printable(path)
    left_out = LeftOut()
    files = text_files(path, left_out, is_stdlib=source == "stdlib")
    is_given = source != "stdlib" and path.is_dir()
    given = given_text(files, shares, left_out, gap=minimum_bytes) if is_given else None
    sides, *how = given or (split_text(files, shares, gap=minimum_bytes),)
    data = TextData(name, *sides, contents(files), (*how, *left_out.sentences()))
    _check_sizes(data, str(path), files, shares, minimum_bytes, is_given=given is not None)
    return data


def _check_sizes(
    data: TextData, path: str, files: Sequence[DataFile], shares: Shares, minimum_bytes: int, *, is_given: bool
) -> None:
    sizes = {"to train on": data.train_bytes}
    if data.selection_bytes or shares.selection:
        sizes["to choose on"] = data.selection_bytes
    if data.test_bytes or shares.test:
        sizes["to test on"] = data.test_bytes
    if min(sizes.values()) >= minimum_bytes:
        return
    # one file: set apart floor(share x bytes) each; trained on what remains after the gaps
    cut = len(shares.positive)
    rest = 1 - sum(shares.positive)
    needed = math.ceil(max(minimum_bytes / min(shares.positive), (1 + cut) * minimum_bytes / rest)) + cut
    enough = "" if is_given else f"; about {needed} bytes are enough"
    raise DataError(
        f"{path!r} is too small: it has {sum(f.size for f in files)} bytes of text in {len(files)} file(s), "
        f"which gives {', '.join(f'{size} {use}' for use, size in sizes.items())}, and windows of "
        f"{minimum_bytes} bytes are needed from each{enough}. "
        f"{' '.join(data.notes)}{' ' if data.notes else ''}Use more text or a shorter length."
    )
