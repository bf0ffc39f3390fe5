"""The folder that keeps the kernels. What lies there is executed: nobody but the user and root may write into it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from attensor.errors import BackendError

__all__ = ["INSTEAD", "alone", "is_held", "kernels_folder", "open_in_folder", "own_file"]

INSTEAD = "or set ATTENSOR_CACHE to a folder of your own"  # the end of a sentence

# variables that name the folder, the first that is set, and where it lies below theirs
_BELOW = {"ATTENSOR_CACHE": ".", "XDG_CACHE_HOME": "attensor", "HOME": ".cache/attensor"}


def kernels_folder() -> Path:
    """`$ATTENSOR_CACHE`, else `$XDG_CACHE_HOME/attensor`, else `~/.cache/attensor`; it need not be there yet.

    Raises:
        BackendError: there is no such user, or the folder or one on the way to it is somebody else's to change.
    """
    folder = _named_folder()
    _require_own(folder, stat.S_ISDIR, "folder", writers=stat.S_IWGRP | stat.S_IWOTH)
    for above in folder.parents:
        # who may write there can exchange what is below; in a sticky folder (/tmp) only what belongs to them
        _require_own(above, stat.S_ISDIR, "folder", writers=stat.S_IWOTH, unless=stat.S_ISVTX)
    return folder


def own_file(path: Path) -> bytes | None:
    """The content of a file of the folder, None where there is none.

    Raises:
        BackendError: it is no regular file, or somebody else's to change.
    """
    is_there = _require_own(path, stat.S_ISREG, "regular file", writers=stat.S_IWGRP | stat.S_IWOTH)
    return path.read_bytes() if is_there else None


def open_in_folder(path: str, flags: int) -> int:
    """An `opener` for `open`: the file that it creates can be written by the user alone, whatever the umask."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder if need be and hold it for this process, after whoever holds it; left-overs are then removed.

    Raises:
        BackendError: the lock is no regular file, or somebody else's to change.
        OSError: the folder or the lock cannot be made.
    """
    import fcntl  # not on Windows, which has no kernels
    import shutil

    for place in (*reversed(folder.parents), folder):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
    lock = folder / "building.lock"
    own_file(lock)
    # never removed: who waits for a removed lock would hold it beside who makes a new one
    with open(lock, "w", opener=open_in_folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob("building-*/"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def is_held(folder: Path) -> bool:
    """Whether another process is inside `alone`.

    Raises:
        BackendError: the lock is no regular file, or somebody else's to change.
    """
    import fcntl

    if own_file(folder / "building.lock") is None:
        return False
    with suppress(OSError), (folder / "building.lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False  # a lock that nobody holds is left over


def _named_folder() -> Path:
    variable = next((name for name in _BELOW if os.environ.get(name)), "HOME")
    try:
        folder = Path(os.environ.get(variable) or "~", _BELOW[variable]).expanduser().absolute()
        return folder.parent.resolve() / folder.name  # a link on the way is as good as where it leads
    except RuntimeError as error:
        raise BackendError(f"{variable} names no folder: {error} Correct it, {INSTEAD}") from None


def _require_own(path: Path, is_kind: Callable[[int], bool], kind: str, *, writers: int, unless: int = 0) -> bool:
    """Whether `path` is there.

    Raises:
        BackendError: it is a link or of another kind, belongs neither to this user nor to root, or has one of the
            permissions `writers` without `unless`.
    """
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not is_kind(found.st_mode):
        raise BackendError(f"{path} is no {kind}; remove it, {INSTEAD}")
    if found.st_uid not in (os.geteuid(), 0):
        raise BackendError(f"{path} belongs to another user, uid {found.st_uid}; remove it, {INSTEAD}")
    if found.st_mode & writers and not found.st_mode & unless:
        raise BackendError(f"{path} can be written by others; chmod go-w it if you trust what it holds, {INSTEAD}")
    return True
