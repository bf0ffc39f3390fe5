"""What can go wrong with the disk is found out before the training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["check_disk"]


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Create `folder`, write and sync a probe file in it, and compare the free space with `needed_bytes`.

    Raises:
        OSError: the folder cannot be made or written, or too little space is left; the message says which.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        with probe.open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"--out {folder}: cannot be written ({error.strerror}). Choose another folder with --out."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(
            f"--out {folder}: the run needs about {_megabytes(needed_bytes)} for checkpoints and results, "
            f"{_megabytes(free)} are free. Make room or choose another disk with --out."
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
