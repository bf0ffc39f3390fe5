"""Files that are either whole or absent, and folders that one process holds.

A file is written under another name, synced to the disk, then renamed.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = [
    "RUN_MARK",
    "DamagedFileError",
    "atomic_path",
    "locked",
    "new_folder",
    "read_json",
    "user_path",
    "write_json",
    "write_text",
]

# a folder with such a file holds a run and no data, wherever it lies
RUN_MARK = ".attensor-run"
# suffix of an archive -> how it is unpacked into the folder `data`
_UNPACK = {
    ".zip": "unzip -d data {name}",
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), "tar -C data -xf {name}"),
    ".gz": "gunzip -c {name} > data/text",
}


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
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Not-a-number is refused (ValueError): JSON has no such number."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; a lone surrogate (a file's name that is no UTF-8) becomes `?`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None when there is no such file.

    Raises:
        DamagedFileError: it holds something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, str(error)) from error


class DamagedFileError(ValueError):
    """A file of ours that somebody or something has changed."""

    def __init__(self, path: Path, what: str, remedy: str = "Delete it, and what it held is computed again.") -> None:
        super().__init__(f"{path}: is damaged ({what}). {remedy}")
        self.path, self.what = path, what


def user_path(text: str, option: str) -> Path:
    """The absolute path that a user means by an option; `~` is a home, links stay.

    Raises:
        ValueError: nothing, an address of the web, or the home of nobody.
    """
    if not text.strip():
        raise ValueError(f"{option} is empty; give a path, `.` is the folder you are in.")
    if "://" in text:
        raise ValueError(f"{option} {text}: is an address and not a path. {_instead(text, option)}")
    path = os.path.expanduser(text)
    if path.startswith("~") and not os.path.lexists(path):
        raise ValueError(f"{option} {text}: there is no user {path[1:].partition('/')[0]}; write the path in full.")
    return Path(os.path.abspath(path))


def _instead(address: str, option: str) -> str:
    """What to type instead of an address: attensor opens no connection.

    A run can then be resumed without one, a digest of a file says what was learned, and `-f` keeps an error page out.
    """
    parts = urlsplit(address)
    if parts.scheme == "file":
        return f"Give the path alone: {option} {shlex.quote(unquote(parts.path))}"
    if parts.scheme not in ("http", "https"):
        return "Copy it to this machine with the program that reads such addresses, then give the path of the copy."
    name = PurePosixPath(parts.path).name
    if not name or parts.query:  # what -O would call it is no name, or one with a question mark
        name = f"./{name or 'data.txt'}"
        command = f"curl -fL {shlex.quote(address)} -o {shlex.quote(name)}"
    else:
        name, command = f"./{name}", f"curl -fLO {shlex.quote(address)}"
    unpack = next((how for suffix, how in _UNPACK.items() if name.endswith(suffix)), None)
    if unpack is None:
        return f"Download it first: {command}  then: {option} {shlex.quote(name)}"
    return (
        f"Download and unpack it first: {command} && mkdir data && {unpack.format(name=shlex.quote(name))}  "
        f"then: {option} ./data"
    )


def new_folder(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `parent/name-1` and so on where that is taken, marked as one of a run; parents too."""
    taken = (name, *(f"{name}-{i}" for i in range(1, 1000)))
    folder = next(folder for each in taken if not (folder := parent / each).exists())
    folder.mkdir(parents=True)
    (folder / RUN_MARK).touch()
    return folder


@contextmanager
def locked(folder: Path, *, wait: bool = False, name: str = ".lock") -> Iterator[None]:
    """Hold the folder for one process; the system lets go when the process dies, however it dies.

    Args:
        folder: gets a file `name`.
        wait: for the other process to end, instead of failing.
        name: of the lock; locks of different names are independent.
    Raises:
        ValueError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two processes in one folder remain the user's care
        yield
        return
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another attensor works in this folder. Wait for it, or end it.") from error
        yield


def _sync_folder(folder: Path) -> None:
    # a rename is on the disk only when its folder is; Windows cannot open folders and does not need it
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
