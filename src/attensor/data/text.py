r"""Text and code as bytes (vocabulary 256), split without leakage between training and held-out data.

Where everything at the top of a folder has the name of a part (`train`, `val.txt`), that is the split. Else it is a
function of names and contents alone:

1. Byte-identical files form a group and never stand on both sides.
2. A group with more than the held-out share of all bytes keeps one copy, whose end is held out; between its two parts
   lies a gap of the longest window, which nobody reads. A single file is this case.
3. The other groups are held out whole, in the order of a hash of their first name, until the share is reached.

A side is the concatenation of its files in the order of their names. Windows may run from one file into the next, as
in the packed batches that language models are trained on; nothing is inserted between files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sysconfig
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attensor.data.files import (
    DataFile,
    contents,
    failure,
    find_files,
    generator,
    hash_order,
    inspect_file,
    locate,
    printable,
)
from attensor.data.kinds import TEXT
from attensor.data.left_out import LeftOut
from attensor.data.parts import TEST, TRAIN, VALIDATION, part_of
from attensor.data.stream import ByteStream, Segment
from attensor.errors import DataError

__all__ = ["TextData", "open_text"]

# `encodings` holds a hundred nearly equal character tables: a split between them would leak
_STDLIB_EXCLUDED = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
)
_MOST_DECODED = 256 * 2**20  # bytes of a source in UTF-16 or UTF-32


class TextData:
    """Bytes to train on and bytes held out.

    Attributes:
        kind: `"text"`.
        vocab_size: 256, one token per byte.
        name: what the source is called in tables.
        train_bytes, held_out_bytes: size of either side.
        train_files, held_out_files: files with at least one byte on that side.
        fingerprint: of names and contents of all files, see `contents`.
        notes: what was left out, and who made the split; sentences for the user.
    """

    kind = "text"
    vocab_size = 256

    def __init__(
        self,
        name: str,
        train: Sequence[Segment],
        held_out: Sequence[Segment],
        fingerprint: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.fingerprint, self.notes = name, fingerprint, tuple(notes)
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
    """Text or code, byte by byte, in any encoding; UTF-16 and UTF-32 with a mark at the beginning become UTF-8.

    Args:
        source: a file; a folder, searched to any depth (hidden entries, symbolic links, and files that are no text by
            their first 4 KiB are left out); or `"stdlib"`, the running Python's standard library: its `*.py` files
            without tests, installed packages and character tables.
        held_out: share of the bytes that is held out, where the names in the folder do not say it.
        minimum_bytes: the longest window that will be asked for. Either side must have as many, and a file that is
            itself split has a gap as long.
    Raises:
        DataError: the source is missing, unreadable, without text, or too small.
    Cost: a folder is listed and, up to 1 GiB in all, the whole of each file is read (see `contents`); nothing is kept
        in memory but what was UTF-16 or UTF-32.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"open_text: held_out must lie between 0 and 1, got {held_out}.")
    if source == "stdlib":
        path, name = locate(sysconfig.get_paths()["stdlib"]), "stdlib"
    else:
        path = locate(source)
        name = printable(path)
    left_out = LeftOut()
    files = _text_files(path, left_out, is_stdlib=source == "stdlib")
    given = None if source == "stdlib" or not path.is_dir() else given_split(files, left_out)
    train, held = given or split_text(files, held_out=held_out, gap=minimum_bytes)
    how = () if given is None else ("The split is the one that the names at the top of the folder say.",)
    data = TextData(name, train, held, contents(files), (*how, *left_out.sentences()))
    if min(data.train_bytes, data.held_out_bytes) < minimum_bytes:
        # one file: held out floor(share x bytes); trained on what remains after the gap
        needed = math.ceil(max(minimum_bytes / held_out, 2 * minimum_bytes / (1 - held_out))) + 1
        enough = f"; about {needed} bytes are enough" if given is None else ""
        raise DataError(
            f"{str(path)!r} is too small: it has {sum(f.size for f in files)} bytes of text in {len(files)} file(s), "
            f"which gives {data.train_bytes} to train on and {data.held_out_bytes} held out, and windows of "
            f"{minimum_bytes} bytes are needed from both{enough}. "
            f"{' '.join(data.notes)}{' ' if data.notes else ''}Use more text or a shorter length."
        )
    return data


def given_split(files: Sequence[DataFile], left_out: LeftOut) -> tuple[list[Segment], list[Segment]] | None:
    """The stretches to train on and those held out, or None where the names at the top of the folder say no such thing.

    They say it if all folders at the top are called after parts of a data set; without folders, if all files are.
    """
    tops = [file.name.partition("/") for file in files]
    part = [part_of(name if slash else name.partition(".")[0]) for name, slash, _ in tops]
    is_telling = [bool(slash) for _, slash, _ in tops] if any(slash for _, slash, _ in tops) else [True] * len(tops)
    told = {part for part, tells in zip(part, is_telling, strict=True) if tells}
    if None in told or TRAIN not in told or len(told) < 2:
        return None
    held_part = VALIDATION if VALIDATION in told else TEST
    held = [file for file, of in zip(files, part, strict=True) if of == held_part]
    copies = {file.fingerprint for file in held}
    train = []
    for file, of in zip(files, part, strict=True):
        if of == TRAIN and file.fingerprint not in copies:
            train.append(file)
        elif of == TRAIN:
            left_out.add(file.name, "to train on, but also held out")
        elif of != held_part:
            left_out.add(file.name, f"neither of the part to train on nor of that for {held_part}")
    return [Segment(file, 0, file.size) for file in train], [Segment(file, 0, file.size) for file in held]


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
            (held if file.fingerprint in chosen else train).append(Segment(file, 0, file.size))
        elif file is groups[file.fingerprint][0]:
            tail = int(held_out * file.size)
            front = file.size - tail - gap
            train += [Segment(file, 0, front)] if front > 0 else []
            held += [Segment(file, file.size - tail, tail)] if tail else []
    return train, held


def _text_files(path: Path, left_out: LeftOut, *, is_stdlib: bool) -> list[DataFile]:
    if not path.is_dir():
        file = inspect_file(path, path.name)
        if file.size == 0:
            raise DataError(f"{str(path)!r} is empty.")
        if file.kind != TEXT and not file.kind.encoding:
            raise DataError(f"{str(path)!r} is no text: {file.kind.name}. {file.kind.remedy}.")
        return [_as_utf8(file)]
    excluded = _STDLIB_EXCLUDED if is_stdlib else ()
    found = find_files(path, excluded=excluded, left_out=left_out)
    files = [inspect_file(p, name) for p, name in found if not is_stdlib or name.endswith(".py")]
    text = []
    decoded = 0
    for file in files:
        if file.kind == TEXT or file.kind.encoding:
            text += [_as_utf8(file)] if file.size else []
            decoded += file.size if file.kind.encoding else 0
        else:
            left_out.add(file.name, file.kind.name, file.kind.remedy)
        if decoded > _MOST_DECODED:
            raise _too_much(path)
    if not text:
        why = " ".join(left_out.sentences()) or (
            f"{len(files)} file(s), all empty" if files else "no file but hidden ones"
        )
        raise DataError(f"{str(path)!r} has no text: {why}")
    return text


def _as_utf8(file: DataFile) -> DataFile:
    """The file itself, or its text in memory when that is not what its bytes are."""
    if not file.kind.encoding:
        return file
    if file.size > _MOST_DECODED:
        raise _too_much(file.path)
    try:
        text = file.path.read_bytes().decode(file.kind.encoding, "replace").encode()
    except OSError as error:
        raise failure(file.path, error) from error
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return dataclasses.replace(file, size=len(text), fingerprint=digest, text=text)


def _too_much(path: Path) -> DataError:
    return DataError(
        f"{str(path)!r} has more than {_MOST_DECODED >> 20} MiB of text in UTF-16 or UTF-32, which is kept in "
        "memory. Convert it to UTF-8 (iconv -t UTF-8)."
    )
