"""The C++ kernels of all operators as one shared library: built beside the program, kept for later processes.

It is kept in `$ATTENSOR_CACHE`, else `$XDG_CACHE_HOME/attensor`, else `~/.cache/attensor`, as `kernels-KEY-CONTENT.so`:
KEY is a digest of all that decides what is built (sources, compiler, options, processor), CONTENT one of the file.
A call never waits for a compiler: where nothing is kept yet, a process of its own builds it (`start`), this process
goes on without, and later ones take it. `attensor doctor --build` and `python -m attensor.ops._native` wait for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from attensor.errors import BackendError
from attensor.ops._native.compiler import OPTIONS, compile_library, compiler, version

__all__ = ["SOURCES", "build", "kernels_form", "library", "why_not", "why_not_by_default"]

SOURCES = Path(__file__).parents[1]  # each operator's kernels are in its own folder `cpp`

# lines of /proc/cpuinfo that tell two processors apart
_IDENTITY = ("flags", "Features", "model name", "CPU implementer", "CPU part")


def library() -> ctypes.CDLL:
    """The kernels, loaded.

    Raises:
        BackendError: there are none here; the message gives the reason that `why_not` gives.
    """
    found = _begin()
    found = _look() if isinstance(found, str) else found
    if isinstance(found, str):
        raise BackendError(f"cpp back-end: {found}")
    return found


def why_not(demanded: bool = False) -> str | None:
    """The reason why this process does not take the kernels, or None when it does.

    Args:
        demanded: count kernels too that were finished after the process began without.
    """
    found = _begin()
    if demanded and isinstance(found, str):
        found = _look()
    return found if isinstance(found, str) else None


def kernels_form() -> Literal["cpp", "torch"]:
    """`"cpp"` where this process takes the C++ kernels on a CPU, else `"torch"`; the same at every call."""
    return "torch" if why_not() else "cpp"


@functools.cache
def why_not_by_default() -> str | None:
    """The reason why this process does not take the kernels unasked; the same at every call.

    The first question decides for the process, so that its numbers do not depend on when a build is finished; it also
    starts one where nothing is kept.
    """
    return why_not()


def build() -> Path:
    """Build the kernels now, unless they are kept already: units in parallel, seconds to a minute.

    Returns:
        The library.
    Raises:
        BackendError: it cannot be built; with the reason, which is kept too: nobody tries again unasked.
    """
    command = _command()
    if isinstance(command, str):
        raise BackendError(command)
    key, folder = _key(tuple(command), SOURCES), _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder / f"building-{key}.lock"):
            kept = _kept(key, folder)
            return kept or _compile(command, key, folder)
    except (OSError, BackendError) as error:
        reason = str(error) if isinstance(error, BackendError) else f"the C++ kernels cannot be built: {error}"
        with suppress(OSError):
            (folder / f"failed-{key}").write_text(reason)
        raise BackendError(reason) from error


def start() -> None:
    """Build them in a process of its own, which outlives this one and is not interrupted with it."""
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with suppress(OSError):
        process = subprocess.Popen(
            [sys.executable, "-m", "attensor.ops._native"],
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.returncode = 0  # nobody waits for it, and nobody shall be warned of that


@functools.cache  # what a process begins with, it keeps
def _begin() -> ctypes.CDLL | str:
    found = _look()
    if found == _NOT_BUILT:
        start()
        return f"{_NOT_BUILT}; a build has been started beside this process, which goes on without them"
    return found


_NOT_BUILT = "the C++ kernels are not built yet: attensor doctor --build builds them"
_LOADED: dict[Path, ctypes.CDLL] = {}


def _look() -> ctypes.CDLL | str:
    """The kept library, or the reason why there is none."""
    command = _command()
    if isinstance(command, str):
        return command
    try:
        key, folder = _key(tuple(command), SOURCES), _folder()
        path = _kept(key, folder)
        if path is not None:
            return _LOADED.setdefault(path, ctypes.CDLL(str(path)))
        if _is_being_built(folder / f"building-{key}.lock"):
            return "the C++ kernels are being built beside this process; later ones take them"
        failed = folder / f"failed-{key}"
        return f"{failed.read_text()}; attensor doctor --build tries again" if failed.exists() else _NOT_BUILT
    except OSError as error:
        return f"the C++ kernels cannot be loaded: {error}"


def _command() -> list[str] | str:
    """How to compile, or why nothing can be compiled."""
    if platform.system() == "Windows":
        return "the C++ kernels do not support Windows"
    command = compiler()
    if command is not None:
        return command
    wanted = os.environ.get("CXX")
    missing = f"CXX is {wanted!r}, which is not found; " if wanted else ""
    return f"no C++ compiler: {missing}install g++ (Debian: apt-get install g++) or set CXX"


def _kept(key: str, folder: Path) -> Path | None:
    # a file that was cut short loads, and kills the process when it is used
    with suppress(OSError):
        return next((path for path in folder.glob(f"kernels-{key}-*.so") if path.name == _name(key, path)), None)
    return None


def _compile(command: list[str], key: str, folder: Path) -> Path:
    # within the folder, because only there a file can be moved to its place in one step
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as work:
        made = Path(work, "kernels.so")
        compile_library(command, _files("*.cpp"), SOURCES / "_native", made)
        ctypes.CDLL(str(made))  # what does not load shall not be kept
        with made.open("rb") as file:
            os.fsync(file.fileno())
        (folder / f"failed-{key}").unlink(missing_ok=True)
        return made.replace(folder / _name(key, made))


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    import fcntl  # not on Windows, which has no kernels

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _is_being_built(lock: Path) -> bool:
    import fcntl

    with suppress(OSError), lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False  # a lock that nobody holds is left over


def _files(pattern: str) -> list[Path]:
    return sorted([*SOURCES.glob(f"*/cpp/{pattern}"), *SOURCES.glob(f"_native/{pattern}")])


@functools.cache
def _key(command: tuple[str, ...], sources: Path) -> str:
    digest = hashlib.sha256(repr((command, OPTIONS, version([*command]), _processor())).encode())
    for file in (*_files("*.cpp"), *_files("*.h")):
        digest.update(repr((file.name, file.read_bytes())).encode())
    return digest.hexdigest()[:16]


def _name(key: str, file: Path) -> str:
    return f"kernels-{key}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.so"


def _processor() -> str:
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
        lines = [line for line in first.splitlines() if line.startswith(_IDENTITY)]
        if lines:
            return "\n".join(lines)
    return f"{platform.machine()} {platform.processor()}"


def _folder() -> Path:
    for variable, below in (("ATTENSOR_CACHE", "."), ("XDG_CACHE_HOME", "attensor")):
        if os.environ.get(variable):
            return Path(os.environ[variable], below).expanduser().absolute()
    return Path.home() / ".cache" / "attensor"
