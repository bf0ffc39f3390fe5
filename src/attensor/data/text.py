r"""Text and code as bytes (vocabulary 256), split without leakage between training and held-out data.

The split, a function of names and contents alone:

1. Byte-identical files form a group and never stand on both sides.
2. A group with more than the held-out share of all bytes keeps one copy, whose end is held out; between its two parts
   lies a gap of the longest window, which nobody reads. A single file is this case.
3. The other groups are held out whole, in the order of a hash of their first name, until the share is reached.

A side is the concatenation of its files in the order of their names. Windows may run from one file into the next, as
in the packed batches that language models are trained on; nothing is inserted between files.
"""

from __future__ import annotations

import math
import os
import sysconfig
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attensor.data.files import (
    ByteStream,
    DataFile,
    Segment,
    find_files,
    generator,
    hash_order,
    inspect_file,
    locate,
    printable,
)
from attensor.errors import DataError

__all__ = ["TextData", "open_text"]

# `encodings` holds a hundred nearly equal character tables: a split between them would leak
_STDLIB_EXCLUDED = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
)


class TextData:
    """Bytes to train on and bytes held out.

    Attributes:
        kind: `"text"`.
        vocab_size: 256, one token per byte.
        name: what the source is called in tables.
        train_bytes, held_out_bytes: size of either side.
        train_files, held_out_files: files with at least one byte on that side.
    """

    kind = "text"
    vocab_size = 256

    def __init__(self, name: str, train: Sequence[Segment], held_out: Sequence[Segment]) -> None:
        self.name = name
        self._train, self._held_out = ByteStream(train), ByteStream(held_out)
        self.train_bytes, self.held_out_bytes = len(self._train), len(self._held_out)
        self.train_files, self.held_out_files = len(train), len(held_out)

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
        last = self._last_start("training", self.train_bytes, length)
        starts = torch.randint(last + 1, (batch_size,), generator=generator(seed, step))
        return self._train.windows(starts.tolist(), length + 1)

    def held_out(self, length: int, *, limit: int) -> Tensor:
        """Fixed windows for evaluation, evenly spread from the first held-out byte to the last, never overlapping.

        Args:
            length: tokens a window predicts; a window has one byte more.
            limit: most windows to return; there are fewer when the held-out side is short.
        Returns:
            int64 [windows, length + 1].
        Raises:
            DataError: the held-out side is shorter than a window.
        """
        last = self._last_start("held-out", self.held_out_bytes, length)
        count = min(limit, self.held_out_bytes // (length + 1))
        return self._held_out.windows([last * i // max(count - 1, 1) for i in range(count)], length + 1)

    def _last_start(self, side: str, size: int, length: int) -> int:
        if size < length + 1:
            raise DataError(
                f"{self.name!r}: the {side} side has {size} bytes, a window of length {length} needs {length + 1}; "
                "use a shorter length or more text."
            )
        return size - length - 1


def open_text(source: str | os.PathLike[str], *, held_out: float = 0.1, minimum_bytes: int) -> TextData:
    """Text or code, byte by byte; any encoding and any bytes will do.

    Args:
        source: a file; a folder, searched to any depth (hidden entries, symbolic links, and files with a NUL in their
            first 4 KiB are left out); or `"stdlib"`, the running Python's standard library: its `*.py` files without
            tests, installed packages and character tables.
        held_out: share of the bytes that is held out.
        minimum_bytes: the longest window that will be asked for. Either side must have as many, and a file that is
            itself split has a gap as long.
    Raises:
        DataError: the source is missing, unreadable, without text, or too small.
    Cost: a folder is listed and up to 128 KiB of each file are read; nothing is kept in memory.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"open_text: held_out must lie between 0 and 1, got {held_out}.")
    if source == "stdlib":
        path, name = locate(sysconfig.get_paths()["stdlib"]), "stdlib"
    else:
        path = locate(source)
        name = printable(path)
    files = _text_files(path, is_stdlib=source == "stdlib")
    train, held = split_text(files, held_out=held_out, gap=minimum_bytes)
    data = TextData(name, train, held)
    if min(data.train_bytes, data.held_out_bytes) < minimum_bytes:
        # one file: held out floor(share x bytes); trained on what remains after the gap
        needed = math.ceil(max(minimum_bytes / held_out, 2 * minimum_bytes / (1 - held_out))) + 1
        raise DataError(
            f"{str(path)!r} is too small: it has {sum(f.size for f in files)} bytes of text in {len(files)} file(s), "
            f"which gives {data.train_bytes} to train on and {data.held_out_bytes} held out, and windows of "
            f"{minimum_bytes} bytes are needed from both; about {needed} bytes are enough. "
            "Use more text or a shorter length."
        )
    return data


def split_text(files: Sequence[DataFile], *, held_out: float, gap: int) -> tuple[list[Segment], list[Segment]]:
    """The stretches to train on and the held-out ones, by the rules at the top of this file."""
    groups: dict[bytes, list[DataFile]] = defaultdict(list)
    for file in files:
        groups[file.fingerprint].append(file)
    share = held_out * sum(file.size for file in files)
    whole = sorted(
        (group for group in groups.values() if len(group) * group[0].size <= share),
        key=lambda group: hash_order(group[0].name),
    )
    target = held_out * sum(len(group) * group[0].size for group in whole)
    taken = 0
    chosen: set[bytes] = set()
    for group in whole:
        if taken >= target:
            break
        chosen.add(group[0].fingerprint)
        taken += len(group) * group[0].size

    train: list[Segment] = []
    held: list[Segment] = []
    small = {group[0].fingerprint for group in whole}
    for file in files:
        if file.fingerprint in small:
            (held if file.fingerprint in chosen else train).append(Segment(file.path, 0, file.size, file.size))
        elif file is groups[file.fingerprint][0]:
            tail = int(held_out * file.size)
            front = file.size - tail - gap
            train += [Segment(file.path, 0, front, file.size)] if front > 0 else []
            held += [Segment(file.path, file.size - tail, tail, file.size)] if tail else []
    return train, held


def _text_files(path: Path, *, is_stdlib: bool) -> list[DataFile]:
    if not path.is_dir():
        file = inspect_file(path, path.name)
        if file.size == 0:
            raise DataError(f"{str(path)!r} is empty.")
        return [file]
    excluded = _STDLIB_EXCLUDED if is_stdlib else ()
    names = [(p, name) for p, name in find_files(path, excluded=excluded) if not is_stdlib or name.endswith(".py")]
    files = [inspect_file(p, name) for p, name in names]
    text = [file for file in files if file.size and not file.has_nul]
    if not text:
        found = f"{len(files)} file(s), all empty or binary" if files else "no file that is neither hidden nor a link"
        raise DataError(f"{str(path)!r} has no text: {found}.")
    return text
