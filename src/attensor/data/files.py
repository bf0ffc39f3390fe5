"""Finding the files of a data set, and telling one from another without loading them.

Folders are searched to any depth in an order that depends on names alone. Hidden entries (a leading dot), folders that
hold a run of attensor, what operating systems put beside files, and everything that is not a regular file are left
out; symbolic links inside the folder are not followed, so that a file is never met twice and nothing outside the folder
is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import stat
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attensor.data.kinds import Kind, kind_of
from attensor.data.left_out import LeftOut
from attensor.errors import DataError
from attensor.files import RUN_MARK, user_path

__all__ = [
    "DataFile",
    "contents",
    "failure",
    "find_files",
    "generator",
    "hash_order",
    "holds_runs",
    "inside_package",
    "inspect_file",
    "is_ignored",
    "locate",
    "printable",
]

_PROBE = 64 * 1024  # bytes read at either end of a file to tell it from others
_READ_WHOLE = 2**30  # bytes of a data set whose files are read to the end to know it again
_OF_THE_SYSTEM = frozenset(
    {"$RECYCLE.BIN", "@eaDir", "System Volume Information", "Thumbs.db", "__MACOSX", "desktop.ini", "lost+found"}
)


@dataclass(frozen=True)
class DataFile:
    """A regular file.

    Attributes:
        path: where it is.
        name: its path relative to the source, with forward slashes.
        size: bytes to read.
        fingerprint: equal for byte-identical files. Exact up to 128 KiB; longer files of one size that also
            agree in their first and last 64 KiB count as identical.
        kind: what it holds, by its first bytes.
        written: when it was last written to, in nanoseconds.
        text: its contents where they are kept in memory instead of being read when they are needed.
    """

    path: Path
    name: str
    size: int
    fingerprint: bytes
    kind: Kind
    written: int
    text: bytes | None = field(default=None, hash=False, repr=False)

    def check(self, status: os.stat_result) -> None:
        """Compare with what the system says of the file now.

        Raises:
            DataError: it has another size or has been written to since it was listed.
        """
        if status.st_size != self.size:
            what = f"it had {self.size} bytes and now has {status.st_size}"
            raise DataError(f"{str(self.path)!r} changed while in use: {what}. Start again.")
        if status.st_mtime_ns != self.written:
            raise DataError(f"{str(self.path)!r} changed while in use: it has been written to. Start again.")


def failure(path: Path, error: OSError) -> DataError:
    """The DataError for an operating-system error, naming the path."""
    return DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.")


def locate(source: str | os.PathLike[str]) -> Path:
    """The path of a source the user named, `~` resolved.

    Raises:
        DataError: it is empty, an address of the web, in the home of nobody, does not exist or may not be looked at.
    """
    try:
        given = os.fspath(source)
        path = Path(given)
        if "://" in given or given.startswith("~") or not given.strip():
            path = user_path(given, "source")
        path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} does not exist.") from error
    except OSError as error:
        raise failure(path, error) from error
    except ValueError as error:  # of `user_path`, or a NUL in the name
        raise DataError(str(error)) from error
    return path


def printable(path: Path) -> str:
    """The last part of a path, for tables: links resolved, bytes that are no UTF-8 replaced."""
    return os.fsencode(os.path.basename(os.path.realpath(path))).decode("utf-8", "replace")


def find_files(
    folder: Path, *, excluded: Collection[str] = (), left_out: LeftOut | None = None
) -> Iterator[tuple[Path, str]]:
    """All regular files below `folder` as (path, relative name), sorted by name folder by folder.

    Args:
        folder: where to begin.
        excluded: names of folders that are not entered, at any depth.
        left_out: gets the symbolic links that were not followed.
    Raises:
        DataError: a folder cannot be listed.
    """
    links = LeftOut() if left_out is None else left_out
    for parent, folders, files in os.walk(folder, onerror=_fail):
        names = [name for name in folders if not is_ignored(name) and name not in excluded]
        folders[:] = sorted(name for name in names if not os.path.lexists(os.path.join(parent, name, RUN_MARK)))
        for name in sorted(files + [name for name in folders if os.path.islink(os.path.join(parent, name))]):
            if is_ignored(name):
                continue
            path = Path(parent, name)
            try:
                mode = path.lstat().st_mode
            except OSError as error:
                raise failure(path, error) from error
            if stat.S_ISREG(mode):
                yield path, path.relative_to(folder).as_posix()
            elif stat.S_ISLNK(mode):
                links.add(path.relative_to(folder).as_posix(), "symbolic link", "Put what it leads to in its place")


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that an operating system puts beside the others."""
    return name.startswith(".") or name in _OF_THE_SYSTEM


def holds_runs(folder: Path) -> bool:
    """Whether runs of attensor lie anywhere below the folder."""
    return any(RUN_MARK in files for _, _, files in os.walk(folder, onerror=_fail))


def _fail(error: OSError) -> None:
    raise failure(Path(error.filename), error)


def inspect_file(path: Path, name: str) -> DataFile:
    """Size, kind and fingerprint of one file; reads at most 128 KiB.

    Raises:
        DataError: it is missing, unreadable or not a regular file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError(f"{str(path)!r} is not a regular file.")
        with path.open("rb") as file:
            head = file.read(_PROBE)
            file.seek(max(len(head), status.st_size - _PROBE))
            tail = file.read(_PROBE)
    except OSError as error:
        raise failure(path, error) from error
    digest = hashlib.blake2b(status.st_size.to_bytes(8, "big") + head + tail, digest_size=16).digest()
    return DataFile(path, name, status.st_size, digest, kind_of(head), status.st_mtime_ns)


def hash_order(name: str | bytes) -> bytes:
    """A key that sorts names as if shuffled, the same on every machine and in every run."""
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


def inside_package(package: str, folder: str) -> list[Path | zipfile.Path]:
    """Where a folder of another's package may lie: as installed, and in its wheels in the folder where you are.

    Nothing of the package is imported, and the folder need not exist.

    Args:
        package: name by which it is imported.
        folder: inside of it, with forward slashes.
    """
    spec = importlib.util.find_spec(package)
    installed = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    wheels = sorted(Path.cwd().glob(f"{package}-*.whl"), reverse=True)
    found: list[Path | zipfile.Path] = [place / folder for place in installed]
    return found + [zipfile.Path(wheel, f"{package}/{folder}/") for wheel in wheels if zipfile.is_zipfile(wheel)]


def generator(*parts: int) -> torch.Generator:
    """A CPU generator whose stream is a pure function of the given numbers."""
    return torch.Generator().manual_seed(random.Random(repr(parts)).getrandbits(63))


def contents(files: Sequence[DataFile]) -> str:
    """The SHA-256 of the names and contents of files, to know a data set again.

    Every byte counts up to 1 GiB in all; of more, the first and last 64 KiB of each file, and when it was written.

    Raises:
        DataError: a file cannot be read.
    Cost: a second for 1 GiB in memory.
    """
    digest = hashlib.sha256()
    reads_all = sum(file.size for file in files) <= _READ_WHOLE
    for file in files:
        digest.update(repr((os.fsencode(file.name), file.fingerprint)).encode())
        try:
            if not reads_all:
                digest.update(repr(file.written).encode())
            elif file.size > 2 * _PROBE:  # the fingerprint has read the shorter ones to the end
                with file.path.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise failure(file.path, error) from error
    return digest.hexdigest()
