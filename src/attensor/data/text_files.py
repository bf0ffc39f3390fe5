"""The files of a source that hold text, by their first bytes; what is UTF-16 or UTF-32 becomes UTF-8."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from attensor.data.files import DataFile, failure, find_files, inspect_file
from attensor.data.kinds import TEXT
from attensor.data.left_out import LeftOut
from attensor.errors import DataError

__all__ = ["text_files"]

# `encodings` holds a hundred nearly equal character tables: a split between them would leak
_STDLIB_EXCLUDED = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
)
_MOST_DECODED = 256 * 2**20  # bytes of a source in UTF-16 or UTF-32


def text_files(path: Path, left_out: LeftOut, *, is_stdlib: bool = False) -> list[DataFile]:
    """The file itself, or all of a folder that are text and not empty, by name.

    Args:
        path: a file or a folder.
        left_out: gets what is no text.
        is_stdlib: take `*.py` files without tests, installed packages and character tables.
    Raises:
        DataError: unreadable, no text, or too much in UTF-16 or UTF-32.
    """
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
