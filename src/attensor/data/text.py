r"""Text and code as bytes (vocabulary 256), split without leakage (see `splits`).

A side is the concatenation of its files in the order of their names. Windows may run from one file into the next, as
in the packed batches that language models are trained on; nothing is inserted between files.
"""

from __future__ import annotations

import math
import os
import sysconfig
from collections.abc import Sequence

import torch
from torch import Tensor

from attensor.data.files import contents, generator, locate, printable
from attensor.data.left_out import LeftOut
from attensor.data.splits import given_text, split_text
from attensor.data.stream import ByteStream, Segment
from attensor.data.text_files import text_files
from attensor.errors import DataError

__all__ = ["TextData", "open_text"]


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
    files = text_files(path, left_out, is_stdlib=source == "stdlib")
    given = None if source == "stdlib" or not path.is_dir() else given_text(files, left_out)
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
