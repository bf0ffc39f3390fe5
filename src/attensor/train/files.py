"""Files that are either whole or absent: written under another name, synced to the disk, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "read_json", "write_json"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends without an error, it takes the place of `path`.

    The temporary name is fixed, so that what a killed process left behind is overwritten by the next attempt.

    Args:
        path: the file to create or replace; its folder must exist.
    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Not-a-number is refused (ValueError): JSON has no such number."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None when there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _sync_folder(folder: Path) -> None:
    # a rename is on the disk only when its folder is; Windows cannot open folders and does not need it
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
